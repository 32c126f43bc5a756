#pragma once

#include <string>

#include "data/corpus_writer.h"

namespace ringlet {

/// Writes a part of a spool as a corpus file (format: corpus_facts.h) and syncs it. The disk space
/// is taken first; the attribute `complete` comes last. Throws Error; then the file is there, and
/// incomplete.
void write_corpus_image(const CorpusSpool& spool, const CorpusPart& part, const std::string& split,
                        const std::string& path);

}  // namespace ringlet
