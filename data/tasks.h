#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace ringlet {

/// Which task to generate, and how large. 0, or empty: the task's own default.
struct TaskOptions {
  std::string name;        // as in task_names()
  int64_t seq_len = 0;     // tokens of a sample
  int64_t vocabulary = 0;  // ids, of which id 0 only ends documents
  int64_t items = 0;       // what has to be remembered: pairs, symbols or digits
  /// Both ends of the range of distances, in tokens from where an answer could be looked up to it.
  int64_t least_distance = 0, most_distance = 0;
  int64_t seed = 1;
  std::string text;  // passkey: a file, the haystack
};

/// One document of a task.
struct TaskSample {
  struct Answer {
    int64_t place = 0, distance = 0;  // tokens[place] == tokens[place - distance]
  };
  std::vector<int32_t> tokens;
  std::vector<Answer> answers;  // places increase
};

/// A task whose answers stand in the sample itself, as published where it can be:
///   mqar       multi-query associative recall (arXiv:2312.04927): pairs of a key and its value,
///   then
///              each key once more, its value to be told. Keys are ids below vocabulary / 2, values
///              the others; between the queries are random ids, none of them a key of the sample.
///              Without a range, queries come the sooner the likelier (with the published power
///              law).
///   induction  (arXiv:2312.00752): random ids, among them id 1, once; at the end id 1 again: what
///              followed it?
///   copy       (arXiv:2402.01032): id 2, a random string, random ids, id 1: the string again.
///   passkey    (arXiv:2305.16300): bytes; a number is told in a real text, and asked for at its
///   end.
class Task {
 public:
  /// Throws UsageError for a name or sizes that cannot be, Error for a text that cannot be used.
  explicit Task(const TaskOptions& options);

  /// The options with all defaults filled in.
  const TaskOptions& options() const { return options_; }
  std::unique_ptr<Tokenizer> tokenizer() const;
  /// A pure function of the options and the index: the same on every machine.
  TaskSample sample(int64_t index) const;

 private:
  TaskOptions options_;
  size_t kind_ = 0;  // the place of the name in task_names()
  std::string haystack_;
};

std::vector<std::string> task_names();

}  // namespace ringlet
