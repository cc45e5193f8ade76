// Which instruction set the kernels use: the best that the machine has, unless the caller or FMO_ISA forces a lower
// one.
#pragma once

#include <string_view>

namespace fmo {

enum class Isa { scalar, avx2 };  // avx2 means AVX2 + FMA + F16C

const char* isa_name(Isa isa);

// The best instruction set of this machine.
Isa detect_isa();

// `name`: "auto" (FMO_ISA if set, else the best), "scalar" or "avx2". Throws Error for an unknown name or one that the
// machine lacks.
Isa resolve_isa(std::string_view name);

}  // namespace fmo
