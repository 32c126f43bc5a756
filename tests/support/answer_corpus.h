#pragma once

#include <string>
#include <vector>

#include "data/corpus_writer.h"
#include "data/tasks.h"
#include "kernels/random.h"

namespace ringlet::test {

/// Writes a corpus of random ids in [1, vocabulary), id 0 ending documents; answers of each
/// document. Returns its path.
inline std::string write_answer_corpus(
    const std::string& path, int64_t vocabulary, const std::vector<int64_t>& lengths,
    const std::vector<std::vector<TaskSample::Answer>>& answers) {
  const auto tokenizer = make_id_tokenizer("ids", vocabulary, 0);
  CorpusSpool spool(folder_of(path), *tokenizer);
  const CounterRandom random(8, 0);
  uint64_t next = 0;
  for (size_t document = 0; document < lengths.size(); ++document) {
    std::vector<int32_t> tokens(static_cast<size_t>(lengths[document]));
    for (int32_t& token : tokens)
      token = 1 + int32_t(random.bits(next++) % uint64_t(vocabulary - 1));
    spool.append(tokens);
    for (const auto& [place, distance] : answers.at(document)) spool.add_answer(place, distance);
    spool.end_document("");
  }
  spool.finish();
  PendingCorpus(spool, split_spool(spool, 0)[0], "train", path).publish();
  return path;
}

}  // namespace ringlet::test
