#include "threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

#include <sys/mman.h>
#include <ucontext.h>

namespace cuda_on_cpu {

thread_local uint3 threadIdx;
thread_local uint3 blockIdx;
thread_local dim3  blockDim;
thread_local dim3  gridDim;

alignas(128) thread_local char smem[CUDA_ON_CPU_SHARED];
#define CUDA_ON_CPU_ALIAS __attribute__((alias("_ZN11cuda_on_cpu4smemE"), visibility("default")))
extern __thread float weights[CUDA_ON_CPU_SHARED/sizeof(float)] CUDA_ON_CPU_ALIAS;
extern __thread float S[CUDA_ON_CPU_SHARED/sizeof(float)] CUDA_ON_CPU_ALIAS;
extern __thread float slots[CUDA_ON_CPU_SHARED/sizeof(float)] CUDA_ON_CPU_ALIAS;

thread_local block *  here = nullptr;
thread_local unsigned me   = 0;

static std::vector<memory> readable;
static std::vector<memory> scratches;

void fail(const char * what) {
    std::fprintf(stderr, "cuda-on-cpu: %s (block %u %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z, me);
    std::abort();
}

static void go_on_with(const unsigned i) {
    me        = i;
    threadIdx = {i % blockDim.x, i/blockDim.x % blockDim.y, i/blockDim.x/blockDim.y};
    _longjmp(here->fibers[i].at, 1);
}

// The next fiber behind `from` that is not done, or `from`.
static unsigned next_of(const unsigned from) {
    const unsigned n = here->fibers.size();
    unsigned i = from;
    do {
        i = i + 1 == n ? 0 : i + 1;
    } while (here->fibers[i].done && i != from);
    return i;
}

void yield() {
    const unsigned next = next_of(me);
    if (++here->idle > 2*here->fibers.size() + 2) {
        fail("threads wait for each other for ever");
    }
    if (next != me && _setjmp(here->fibers[me].at) == 0) {
        go_on_with(next);
    }
}

// All that are alive have come.
static void release() {
    block & b = *here;
    b.arrived = 0;
    b.result  = b.any;
    b.any     = false;
    b.idle    = 0;
    ++b.phase;
}

bool block_together(const bool mine) {
    block & b = *here;
    b.any = b.any || mine;
    if (++b.arrived == b.alive) {
        release();
    } else {
        for (const unsigned phase = b.phase; b.phase == phase;) {
            yield();
        }
    }
    return b.result; // the next one needs all threads again, this one too
}

void some_together(const int which, const unsigned threads) {
    barrier & b = here->barriers[which];
    if (++b.arrived == threads) {
        b.arrived  = 0;
        here->idle = 0;
        ++b.phase;
        return;
    }
    for (const unsigned phase = b.phase; b.phase == phase;) {
        yield();
    }
}

// What a fiber does: it waits for a block, runs its thread, and waits again.
static void fiber_main() {
    for (;;) {
        if (_setjmp(here->fibers[me].at) == 0) {
            if (here->alive == 0) {
                _longjmp(here->outside, 1);
            }
            go_on_with(next_of(me));
        }
        (*here->body)();
        block & b = *here;
        for (const auto & group : b.fibers[me].groups) {
            if (!group.empty()) {
                fail("a thread ends with copies under way");
            }
        }
        b.fibers[me].done = true;
        b.idle = 0;
        --b.alive;
        if (b.alive > 0 && b.arrived == b.alive) {
            release();
        }
    }
}

// Fibers of one thread of the CPU, used for block after block.
class fibers {
public:
    explicit fibers(const unsigned n) : size(n*stack) {
        memory = (char *) mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) {
            fail("no memory for threads");
        }
        b.fibers.resize(n);
        b.warps.resize(n/warp_lanes);
        here = &b;
        for (unsigned i = 0; i < n; ++i) {
            ucontext_t context;
            getcontext(&context);
            context.uc_stack.ss_sp   = memory + i*stack;
            context.uc_stack.ss_size = stack;
            context.uc_link          = nullptr;
            makecontext(&context, fiber_main, 0);
            me = i;
            if (_setjmp(b.outside) == 0) {
                setcontext(&context);
            }
        }
    }

    fibers(const fibers &) = delete;

    ~fibers() { munmap(memory, size); }

    void run(const std::function<void()> & body, const size_t shared) {
        here     = &b;
        b.body   = &body;
        b.shared = shared;
        b.alive  = b.fibers.size();
        b.idle   = 0;
        for (fiber & f : b.fibers) {
            f.done = false;
            f.groups.assign(1, {});
        }
        std::memset(smem, 0xFF, shared);
        if (_setjmp(b.outside) == 0) {
            go_on_with(0);
        }
        if (b.arrived != 0) {
            fail("a block ends while threads wait");
        }
    }

private:
    static constexpr size_t stack = 256*1024;

    block  b;
    char * memory;
    size_t size;
};

// A grid that is being computed.
struct grid_of_blocks {
    const dim3                    grid, threads;
    const size_t                  shared;
    const std::function<void()> & body;
    std::atomic<uint64_t>         next{0};

    uint64_t size() const { return (uint64_t) grid.x*grid.y*grid.z; }

    // Blocks until none is left. Each thread of the CPU keeps its fibers, by their number.
    void work() {
        static thread_local std::map<unsigned, fibers> all;
        const unsigned n = threads.x*threads.y*threads.z;
        blockDim = threads;
        gridDim  = grid;
        for (uint64_t i = next++; i < size(); i = next++) {
            blockIdx = {(unsigned) (i % grid.x), (unsigned) (i/grid.x % grid.y), (unsigned) (i/grid.x/grid.y)};
            all.try_emplace(n, n).first->second.run(body, shared);
        }
    }
};

// Threads of the CPU beside the one that launches. They end with the program.
class workers {
public:
    explicit workers(const unsigned n) {
        for (unsigned i = 0; i < n; ++i) {
            threads.emplace_back([this] { work(); });
        }
    }

    ~workers() {
        {
            std::lock_guard<std::mutex> lock(mutex);
            ends = true;
        }
        called.notify_all();
        for (std::thread & thread : threads) {
            thread.join();
        }
    }

    // One grid at a time, as a stream has them.
    void compute(grid_of_blocks & g) {
        std::lock_guard<std::mutex> one(launching);
        if (g.size() > 1 && !threads.empty()) {
            {
                std::lock_guard<std::mutex> lock(mutex);
                grid = &g;
                busy = threads.size();
                ++calls;
            }
            called.notify_all();
        }
        g.work();
        std::unique_lock<std::mutex> lock(mutex);
        done.wait(lock, [this] { return busy == 0; });
    }

private:
    std::vector<std::thread> threads;
    std::mutex               launching, mutex;
    std::condition_variable  called, done;
    grid_of_blocks *         grid  = nullptr;
    uint64_t                 calls = 0;
    size_t                   busy  = 0;
    bool                     ends  = false;

    void work() {
        std::unique_lock<std::mutex> lock(mutex);
        for (uint64_t seen = 0;; seen = calls) {
            called.wait(lock, [&] { return ends || calls != seen; });
            if (ends) {
                return;
            }
            lock.unlock();
            grid->work();
            lock.lock();
            if (--busy == 0) {
                done.notify_all();
            }
        }
    }
};

void launch(const dim3 grid, const dim3 threads, const size_t shared, const std::function<void()> & body) {
    const unsigned n = threads.x*threads.y*threads.z;
    if (n == 0 || n % warp_lanes != 0 || n > 1024 || shared > CUDA_ON_CPU_SHARED) {
        fail("a launch that is not known here, or on no card");
    }
    static workers others(std::max(1u, std::thread::hardware_concurrency()) - 1);
    grid_of_blocks g{grid, threads, shared, body};
    others.compute(g);
}

char * shared_at(const uint32_t address, const size_t size) {
    if (address + size > here->shared) {
        fail("shared memory that the block does not have");
    }
    return smem + address;
}

static const char * end_of(const memory & m) { return (const char *) m.first + m.second; }

// `ranges` ascend and do not overlap.
static bool is_within(const std::vector<memory> & ranges, const char * at, const int size) {
    const auto above = std::upper_bound(ranges.begin(), ranges.end(), at, [](const char * at, const memory & m) { return at < m.first; });
    return above != ranges.begin() && at + size <= end_of(above[-1]);
}

void copy_later(const uint32_t to, const void * from, const int size, const int valid) {
    if (valid < 0 || valid > size || (uintptr_t) from % size != 0 || to % size != 0) {
        fail("a copy of an odd size, or from or to an odd address");
    }
    if (valid > 0 && !is_within(readable, (const char *) from, valid) && !is_within(scratches, (const char *) from, valid)) {
        fail("a copy from memory that is no tensor's");
    }
    here->fibers[me].groups.back().push_back({shared_at(to, size), from, size, valid});
}

void copies_end_group() {
    here->fibers[me].groups.emplace_back();
}

void copies_wait(const size_t most_open) {
    auto & groups = here->fibers[me].groups;
    while (groups.size() > most_open + 1) {
        for (const copy & c : groups.front()) {
            std::memset(c.to, 0, c.size);
            std::memcpy(c.to, c.from, c.valid);
        }
        groups.erase(groups.begin());
    }
}

void set_readable(std::vector<memory> tensors) {
    std::sort(tensors.begin(), tensors.end());
    readable.clear();
    for (const memory & m : tensors) {
        // Views lie inside of others. What only touches stays apart.
        if (!readable.empty() && m.first < end_of(readable.back())) {
            readable.back().second = std::max(end_of(readable.back()), end_of(m)) - (const char *) readable.back().first;
        } else {
            readable.push_back(m);
        }
    }
}

void add_scratch(const memory scratch) {
    scratches.insert(std::upper_bound(scratches.begin(), scratches.end(), scratch), scratch);
}

void drop_scratch(const void * at) {
    scratches.erase(std::remove_if(scratches.begin(), scratches.end(), [&](const memory & m) { return m.first == at; }), scratches.end());
}

} // namespace cuda_on_cpu
