#pragma once

#include <string>

#include "train/commands/inspect_corpus.h"
#include "train/commands/output.h"

namespace ringlet {

struct InspectOptions {
  std::string path;
  CorpusCheck check = CorpusCheck::structure;  // everything: of checkpoints too
  OutputFormat format = OutputFormat::text;
};

/// Prints what a path holds, by what it is: a corpus (a file), a checkpoint (a folder with a
/// manifest) or a run. Throws Error.
void inspect(const InspectOptions& options);

}  // namespace ringlet
