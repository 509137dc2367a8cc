#include "kernels/dispatch.h"

namespace ryz {

const KernelTable& kernel_table(Isa isa) {
  switch (isa) {
#ifdef RYZ_HAVE_AVX512
    case Isa::kAvx512:
      return avx512::kTable;
#endif
#ifdef RYZ_HAVE_AVX2
    case Isa::kAvx2:
      return avx2::kTable;
#endif
    default:
      return scalar::kTable;
  }
}

}  // namespace ryz
