// Every op that is written once for all tiers. A tier's table.cpp includes its simd.h, then this.
#pragma once

#include "kernels/vector/attention.h"
#include "kernels/vector/dense_linear.h"
#include "kernels/vector/kv_write.h"
#include "kernels/vector/rows.h"
#include "kernels/vector/sampling.h"
#include "kernels/vector/weight_only_linear.h"
