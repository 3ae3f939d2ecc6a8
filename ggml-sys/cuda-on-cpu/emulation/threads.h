// The threads of a CUDA block on one thread of the CPU: fibers that take turns where CUDA's threads would wait for each other.
//
// A fiber runs until it waits. So results do not depend on luck, and what a kernel forgets to wait for is missing: copies to shared
// memory happen when they are waited for, not before, and shared memory begins as NaNs.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace cuda_on_cpu {

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern thread_local uint3 threadIdx;
extern thread_local uint3 blockIdx;
extern thread_local dim3  blockDim;
extern thread_local dim3  gridDim;

// Shared memory of a size that the launch decides. Kernels have other names and types for it too: threads.cpp.
#define CUDA_ON_CPU_SHARED (228*1024)
extern thread_local char smem[];

constexpr unsigned warp_lanes = 32;

// Ends the program: a kernel did what a card would punish, or would not notice.
[[noreturn]] void fail(const char * what);

struct copy {
    void       * to;
    const void * from;
    int          size, valid; // bytes, and how many of them are the source's; the others are zeros
};

struct fiber {
    jmp_buf                        at;
    bool                           done = true;
    std::vector<std::vector<copy>> groups; // of asynchronous copies; the last one is open
};

struct warp {
    void *       lanes[warp_lanes];
    const void * what    = nullptr; // they do together
    unsigned     arrived = 0;
    unsigned     phase   = 0;
};

struct barrier {
    unsigned arrived = 0;
    unsigned phase   = 0;
};

struct block {
    std::vector<fiber> fibers;
    std::vector<warp>  warps;
    barrier            barriers[16];
    jmp_buf            outside;
    const std::function<void()> * body = nullptr;
    size_t   shared  = 0; // bytes
    unsigned alive   = 0;
    unsigned arrived = 0;
    unsigned phase   = 0;
    bool     any     = false;
    bool     result  = false;
    unsigned idle    = 0; // turns in which nothing happened
};

extern thread_local block *  here;
extern thread_local unsigned me; // of the block's threads

// To the next fiber, until it is this one's turn again.
void yield();

// Runs `body` for each thread of each block of a grid.
void launch(dim3 grid, dim3 threads, size_t shared, const std::function<void()> & body);

// All threads of a block, with the disjunction of what they say.
bool block_together(bool mine);

// So many threads that name the same barrier.
void some_together(int which, unsigned threads);

// The lanes of a warp: the last one to come acts on what all brought.
template <typename T, typename F> void warp_together(T & mine, const F & act) {
    static const char what = 0;
    warp & w = here->warps[me/warp_lanes];
    if (w.arrived > 0 && w.what != &what) {
        fail("lanes of a warp wait for different things");
    }
    w.what = &what;
    w.lanes[me % warp_lanes] = &mine;
    if (++w.arrived == warp_lanes) {
        w.arrived = 0;
        act((T **) w.lanes);
        ++w.phase;
        here->idle = 0;
        return;
    }
    for (const unsigned phase = w.phase; w.phase == phase;) {
        yield();
    }
}

// Bytes of shared memory by their 32-bit address.
char * shared_at(uint32_t address, size_t size);

void copy_later(uint32_t to, const void * from, int size, int valid);
void copies_end_group();
void copies_wait(size_t most_open);

// Memory that asynchronous copies may read: that of tensors, and scratch.
using memory = std::pair<const void *, size_t>;
void set_readable(std::vector<memory> tensors);
void add_scratch(memory scratch);
void drop_scratch(const void * at);

} // namespace cuda_on_cpu
