#pragma once

// Selective tuning without torch: kernels on raw pointers. Include this, link aimfair::aimfair.

#include "aimfair/accumulate.h"
#include "aimfair/cpu.h"
#include "aimfair/mask.h"
#include "aimfair/step.h"
#include "aimfair/topk.h"
#include "aimfair/version.h"
