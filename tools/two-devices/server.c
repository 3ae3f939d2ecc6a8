// Offers this machine's processor as a device of its own: server HOST:PORT FOLDER_OF_BACKENDS
#include "ggml-backend.h"
#include "ggml-rpc.h"

#include <stdio.h>

int main(int argc, char ** argv) {
    if (argc == 3) {
        ggml_backend_load_all_from_path(argv[2]);
    }
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (argc != 3 || !cpu) {
        fprintf(stderr, "usage: server HOST:PORT FOLDER_OF_BACKENDS\n");
        return 1;
    }
    ggml_backend_rpc_start_server(argv[1], NULL, 1, 1, &cpu);
    return 0;
}
