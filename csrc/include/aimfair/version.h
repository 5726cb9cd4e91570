#pragma once

#define AIMFAIR_VERSION "0.1.0"
