#pragma once

// Selective tuning without torch: kernels on raw pointers. Include this, link aimfair::aimfair.

#include "aimfair/accumulate.h"
#include "aimfair/cpu.h"
#include "aimfair/mask_ops.h"
#include "aimfair/masked_step.h"
#include "aimfair/select.h"
#include "aimfair/version.h"
