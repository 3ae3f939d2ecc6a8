// Preloaded, it adds the servers of $RPC_SERVERS (HOST:PORT,...) to ggml's devices as RPC0, RPC1 and so on.
#define _GNU_SOURCE
#include "ggml-backend.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

void ggml_backend_load_all(void) {
    static int loaded;
    ((void (*)(void)) dlsym(RTLD_NEXT, "ggml_backend_load_all"))();
    ggml_backend_reg_t rpc   = ggml_backend_reg_by_name("RPC");
    const char *       names = getenv("RPC_SERVERS");
    if (loaded++ || !rpc || !names) {
        return;
    }
    ggml_backend_reg_t (*add)(const char *) = (ggml_backend_reg_t (*)(const char *)) ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server");
    char * list = strdup(names);
    for (char * name = strtok(list, ","); name; name = strtok(NULL, ",")) {
        ggml_backend_register(add(name));
    }
    free(list);
}
