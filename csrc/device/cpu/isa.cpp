#include "device/cpu/isa.h"

#include <cstdlib>
#include <string>

#include "base/error.h"

namespace fmo {

const char* isa_name(Isa isa) { return isa == Isa::avx2 ? "avx2" : "scalar"; }

Isa detect_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return Isa::avx2;
#endif
  return Isa::scalar;
}

Isa resolve_isa(std::string_view name) {
  const Isa best = detect_isa();
  std::string where = "the argument isa";
  std::string wanted(name);
  if (wanted == "auto") {
    const char* forced = std::getenv("FMO_ISA");
    if (forced == nullptr || *forced == '\0') return best;
    wanted = forced;
    where = "the environment variable FMO_ISA";
    if (wanted == "auto") return best;
  }
  if (wanted == "scalar") return Isa::scalar;
  if (wanted != "avx2")
    throw Error("instruction set '" + wanted + "' is none of auto, scalar, avx2", where, "use one of these");
  if (best != Isa::avx2) throw Error("this machine has no AVX2, FMA and F16C", where, "use auto or scalar");
  return Isa::avx2;
}

}  // namespace fmo
