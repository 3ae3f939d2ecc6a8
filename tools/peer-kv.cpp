// The KV caches of llama.cpp, allocated: rows of the table `allocated` of docs/kv-cache.md, against llama.h only.
//
//   kv-tables allocate --keep DIR       # leaves DIR/31b.gguf and DIR/26b-a4b.gguf: true shapes, holes for weights
//   c++ -O2 -I LLAMA_CPP/include -I LLAMA_CPP/ggml/include tools/peer-kv.cpp -L LIBS -lllama -lggml -lggml-base -o peer-kv
//   peer-kv DIR/31b.gguf 65536; peer-kv DIR/26b-a4b.gguf 65536 262144
//
// For each type and context: what llama.cpp's log says of its KV buffers, and by how much the process grew.
#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

static double logged;

static void on_log(ggml_log_level level, const char * text, void *) {
    const char * at = strstr(text, "KV buffer size =");
    if (at) {
        logged += atof(at + strlen("KV buffer size ="))/1024;
    }
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static double resident() {
    FILE * file = fopen("/proc/self/status", "r");
    char line[256];
    double kib = 0;
    while (file && fgets(line, sizeof(line), file)) {
        sscanf(line, "RssAnon: %lf", &kib);
    }
    if (file) { fclose(file); }
    return kib/(1 << 20);
}

int main(int argc, char ** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: peer-kv MODEL.gguf N_CTX...\n");
        return 1;
    }
    llama_log_set(on_log, nullptr);
    llama_backend_init();
    llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers    = 0;
    model_params.use_extra_bufts = false;
    llama_model * model = llama_model_load_from_file(argv[1], model_params);
    if (!model) { return 1; }
    printf("| cache, GiB | context | log | resident |\n| --- | --- | --- | --- |\n");
    const struct { const char * name; ggml_type type; } types[] = {
        { "f16", GGML_TYPE_F16 }, { "q8_0", GGML_TYPE_Q8_0 }, { "q4_0", GGML_TYPE_Q4_0 } };
    for (int i = 2; i < argc; i++) {
        for (const auto & type : types) {
            llama_context_params params = llama_context_default_params();
            params.n_ctx           = (uint32_t) atoi(argv[i]);
            params.n_batch         = params.n_ubatch = 512;
            params.n_seq_max       = 1;
            params.type_k          = params.type_v = type.type;
            params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
            params.swa_full        = false;
            params.offload_kqv     = false;
            params.n_threads       = params.n_threads_batch = 1;
            logged = 0;
            const double before = resident();
            llama_context * context = llama_init_from_model(model, params);
            if (!context) { return 1; }
            printf("| llama.cpp %s | %s | %.3f | %.3f |\n", type.name, argv[i], logged, resident() - before);
            fflush(stdout);
            llama_free(context);
        }
    }
    llama_model_free(model);
}
