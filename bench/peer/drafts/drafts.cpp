// How many drafted tokens llama.cpp accepts, by the protocol of tests/src/acceptance.rs: 64 prompts of a text, 128
// tokens each; 128 more are written greedily; rounds that start in the last 16 are left out.
//
// usage: drafts TARGET.gguf DRAFTER.gguf draft-mtp|draft-dflash DRAFTS TEXT

#include "common.h"
#include "speculative.h"

#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>

static const int PROMPTS = 64, PROMPT = 128, WRITTEN = 128, LEFT_OUT = 16;

static llama_token best(llama_context * ctx, int row, int n_vocab) {
    const float * logits = llama_get_logits_ith(ctx, row);
    return (llama_token) (std::max_element(logits, logits + n_vocab) - logits);
}

int main(int argc, char ** argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: drafts TARGET.gguf DRAFTER.gguf draft-mtp|draft-dflash DRAFTS TEXT\n");
        return 1;
    }
    llama_backend_init();
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
    }, nullptr);

    common_params params;
    params.model.path    = argv[1];
    params.n_ctx         = 512;
    params.n_parallel    = 1;
    params.warmup        = false;
    params.fit_params    = false;
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1;
    params.speculative.types = common_speculative_types_from_names({ argv[3] });
    params.speculative.draft.mparams.path = argv[2];
    params.speculative.draft.n_max = atoi(argv[4]);
    // On, it wants an output limit of the context that only llama.cpp's server sets.
    params.speculative.draft.backend_sampling = false;
    params.speculative.draft.cpuparams = params.speculative.draft.cpuparams_batch = params.cpuparams;

    auto target = common_init_from_params(params);
    llama_context * ctx = target->context();
    llama_model * model = target->model();
    if (!ctx) return 1;
    auto drafter = common_speculative_init_from_params(params, model, ctx);
    params.speculative.draft.ctx_tgt = ctx;
    params.speculative.draft.ctx_dft = drafter->context();
    if (!params.speculative.draft.ctx_dft) return 1;

    std::ifstream file(argv[5]);
    const std::string text{ std::istreambuf_iterator<char>(file), {} };
    const llama_tokens tokens = common_tokenize(ctx, text, false, false);
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const int n_vocab = llama_vocab_n_tokens(vocab);

    int accepted = 0, rounds = 0;
    double seconds = 0;
    for (int i = 0; i < PROMPTS; i++) {
        // A fresh one for each prompt: it keeps a state of its own.
        common_speculative_ptr spec(common_speculative_init(params.speculative, 1));
        if (!spec) return 1;
        llama_memory_clear(llama_get_memory(ctx), true);
        if (auto * memory = llama_get_memory(params.speculative.draft.ctx_dft)) llama_memory_clear(memory, true);

        const size_t start = i * ((tokens.size() - PROMPT) / PROMPTS);
        llama_tokens all = { llama_vocab_bos(vocab) };
        all.insert(all.end(), tokens.begin() + start, tokens.begin() + start + PROMPT - 1);

        common_batch batch(ctx);
        for (int at = 0; at < PROMPT; at++) batch.add(all[at], at, 0, at + 1 == PROMPT);
        if (llama_process(ctx, LLAMA_PROCESS_TYPE_DECODE, batch.get()) != 0 || !common_speculative_process(spec.get(), batch)) return 1;
        llama_token last = best(ctx, PROMPT - 1, n_vocab);
        common_speculative_begin(spec.get(), 0, all);

        const auto started = std::chrono::steady_clock::now();
        // Tokens written before `last`.
        for (int written = 0; written < WRITTEN; ) {
            const int past = (int) all.size();
            llama_tokens draft;
            auto & how = common_speculative_get_draft_params(spec.get(), 0);
            how = {};
            how.drafting = true;
            how.n_max    = params.speculative.draft.n_max;
            how.pos0     = past;
            how.id_last  = last;
            how.prompt   = &all;
            how.result   = &draft;
            common_speculative_draft(spec.get());
            // What it guessed is not part of its context.
            auto * own = llama_get_memory(params.speculative.draft.ctx_dft);
            if (own) llama_memory_seq_rm(own, 0, past, -1);

            batch.clear();
            batch.add(last, past, 0, true);
            for (size_t k = 0; k < draft.size(); k++) batch.add(draft[k], past + 1 + k, 0, true);
            if (llama_process(ctx, LLAMA_PROCESS_TYPE_DECODE, batch.get()) != 0 || !common_speculative_process(spec.get(), batch)) return 1;
            size_t n = 0;
            llama_token next = best(ctx, 0, n_vocab);
            while (n < draft.size() && draft[n] == next) next = best(ctx, ++n, n_vocab);
            if (written < WRITTEN - LEFT_OUT) {
                accepted += (int) n;
                rounds++;
            }
            common_speculative_accept(spec.get(), 0, (uint16_t) n);
            all.push_back(last);
            all.insert(all.end(), draft.begin(), draft.begin() + n);
            written += 1 + (int) n;
            last = next;
            llama_memory_seq_rm(llama_get_memory(ctx), 0, (llama_pos) all.size(), -1);
            if (own) llama_memory_seq_rm(own, 0, (llama_pos) all.size(), -1);
        }
        seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    }
    printf("%s %s %s: %.3f accepted a round, %d rounds, %.1f s\n", argv[5], argv[3], argv[4],
           (double) accepted / rounds, rounds, seconds);
    return 0;
}
