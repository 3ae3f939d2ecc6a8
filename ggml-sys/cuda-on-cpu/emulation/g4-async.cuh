#pragma once

#include "common.cuh"

inline void g4_async_commit() { copies_end_group(); }
template <int n> void g4_async_wait() { copies_wait(n); }
