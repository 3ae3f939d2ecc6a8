// What bindgen reads.
#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml-g4.h"
#include "gguf.h"
#include "shim.h"
