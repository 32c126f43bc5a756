#pragma once

#include <string>
#include <vector>

#include "model/sequence_layout.h"
#include "train/commands/output.h"

namespace ringlet {

struct ExplainOptions {
  std::string config;                  // absent: what the options say
  std::vector<std::string> overrides;  // key=value
  std::vector<Layout> layouts;         // empty: the config's, or all
  std::string documents;               // lengths, as in "3000,500,16k"; empty: one document
  std::string svg;                     // a file to write
  int64_t stage = 0;                   // of the config's; 0: the longest
  OutputFormat format = OutputFormat::text;
};

/// `ringlet explain`: draws a ring, hop by hop: on stdout, and as a picture in a file.
void explain(const ExplainOptions& options);

/// Where documents of these lengths begin in a window of `length` tokens; what they leave is one more document. Throws
/// UsageError for a text that is no list of lengths, or for more tokens than the window has.
std::vector<int64_t> document_starts(const std::string& lengths, int64_t length);

}  // namespace ringlet
