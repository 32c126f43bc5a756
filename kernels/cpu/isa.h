#pragma once

#include <string_view>

namespace ringlet::cpu {

/// Forces the SIMD target of all operations of ours, from now on, in the whole process: "avx512",
/// "avx2" or "portable" (what every processor of this kind has); "" leaves the best. Throws
/// UsageError on another word, and when the processor lacks it.
void choose_isa(std::string_view word);

/// choose_isa(RINGLET_ISA of the environment), at the first call only.
void choose_isa_once();

}  // namespace ringlet::cpu
