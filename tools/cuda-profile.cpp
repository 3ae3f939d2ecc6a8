/* Which kernels a program spends its GPU time in, inside captured graphs too. A library that CUDA loads by itself:

   CUPTI=.../nvidia/cu13        # of the Python wheel nvidia-cuda-cupti, or an installed CUDA's extras/CUPTI
   g++ -O2 -shared -fPIC tools/cuda-profile.cpp -o cuda-profile.so -I$CUPTI/include -I$CUDAToolkit_ROOT/include \
       $CUPTI/lib/libcupti.so.13
   CUDA_INJECTION64_PATH=$PWD/cuda-profile.so PROFILE_LAST=18000 gpu/bench -m 26b.gguf --device CUDA0 --fill --prompt 0 \
       --depth 0 -n 64 -r 1 --kvs f16

   Counts the last PROFILE_LAST kernels (default 40000): set it below those of the steps that are of interest. A kernel's
   time is what it adds: from the end of the one before, or its own start if that is later, to its end. Overlapped starts
   make anything else misleading. The program itself runs slower under it. */
#include <cupti.h>

#include <cxxabi.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

struct record {
    std::string name;
    uint64_t    start, end;
};

static std::vector<record> records;

static void request(uint8_t ** buffer, size_t * size, size_t * max_records) {
    *size        = 8 << 20;
    *buffer      = (uint8_t *) aligned_alloc(8, *size);
    *max_records = 0;
}

// Without arguments, with the grid and the threads of a block.
static std::string title(const CUpti_ActivityKernel9 & k) {
    int    status = 0;
    char * plain  = abi::__cxa_demangle(k.name, nullptr, nullptr, &status);
    std::string s = plain ? plain : k.name;
    free(plain);
    if (s.rfind("void ", 0) == 0) {
        s = s.substr(5);
    }
    int depth = 0;
    for (size_t i = 0; i < s.size(); ++i) {
        depth += s[i] == '<' ? 1 : s[i] == '>' ? -1 : 0;
        if (s[i] == '(' && depth == 0) {
            s.resize(i);
        }
    }
    char shape[64];
    snprintf(shape, sizeof(shape), " [%d %d x %d]", k.gridX, k.gridY, k.blockX*k.blockY);
    return s.substr(0, 80) + shape;
}

static void completed(CUcontext, uint32_t, uint8_t * buffer, size_t, size_t valid) {
    CUpti_Activity * activity = nullptr;
    while (cuptiActivityGetNextRecord(buffer, valid, &activity) == CUPTI_SUCCESS) {
        if (activity->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
            const auto & k = *(const CUpti_ActivityKernel9 *) activity;
            records.push_back({title(k), k.start, k.end});
        }
    }
    free(buffer);
}

static void report() {
    cuptiActivityFlushAll(1);
    const char * wanted = getenv("PROFILE_LAST");
    const size_t last   = wanted ? strtoull(wanted, nullptr, 10) : 40000;
    std::sort(records.begin(), records.end(), [](const record & a, const record & b) { return a.start < b.start; });
    std::map<std::string, std::pair<long, double>> kernels; // how often, and nanoseconds
    double   all = 0;
    uint64_t end = 0;
    for (size_t i = records.size() > last ? records.size() - last : 0; i < records.size(); ++i) {
        const record & r     = records[i];
        const uint64_t start = std::max(r.start, end);
        const double   added = r.end > start ? (double) (r.end - start) : 0.0;
        auto & kernel = kernels[r.name];
        kernel.first  += 1;
        kernel.second += added;
        all += added;
        end  = std::max(end, r.end);
    }
    std::vector<std::pair<double, std::string>> order;
    for (const auto & [name, kernel] : kernels) {
        order.push_back({kernel.second, name});
    }
    std::sort(order.rbegin(), order.rend());
    fprintf(stderr, "profile: %zu kernels, %.3f ms\n", std::min(last, records.size()), all/1e6);
    for (const auto & [time, name] : order) {
        const long n = kernels[name].first;
        fprintf(stderr, "profile: %5.1f %% %8ld x %8.2f us  %s\n", 100*time/all, n, time/1e3/n, name.c_str());
    }
}

extern "C" int InitializeInjection() {
    cuptiActivityRegisterCallbacks(request, completed);
    cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
    atexit(report);
    return 1;
}
