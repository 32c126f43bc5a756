#include "data/tasks.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <string_view>
#include <utility>

#include "data/sampler.h"
#include "kernels/check.h"
#include "kernels/random.h"

namespace ringlet {

namespace {

constexpr std::string_view kTold = "\nThe pass key is ", kToldEnd = ". Remember it.\n";
constexpr std::string_view kAsked = "\nWhat is the pass key? The pass key is ";

/// Random numbers one after the other.
class Draws {
 public:
  Draws(uint64_t seed, uint64_t stream) : random_(seed, stream) {}
  uint64_t bits() { return random_.bits(next_++); }
  /// In [0, count).
  int64_t below(int64_t count) { return int64_t(bits() % uint64_t(count)); }
  /// In [first, last].
  int64_t between(int64_t first, int64_t last) { return first + below(last - first + 1); }

 private:
  CounterRandom random_;
  uint64_t next_ = 0;
};

struct Range {
  int64_t first = 0, last = 0;
};

/// The number of a slot, drawn with a chance of 1 / (slot + 1): the power law of the published
/// generator, whose exponent is -0.99. Whole numbers: every machine draws the same.
class PowerLaw {
 public:
  explicit PowerLaw(int64_t slots) {
    uint64_t sum = 0;
    for (int64_t slot = 0; slot < slots; ++slot) {
      sums_.push_back(sum += (uint64_t{1} << 40) / uint64_t(slot + 1));
    }
  }
  int64_t draw(Draws& draws) const {
    return std::ranges::upper_bound(sums_, draws.bits() % sums_.back()) - sums_.begin();
  }

 private:
  std::vector<uint64_t> sums_;
};

// ---- mqar: pairs in front, then slots of a query and its answer ----

/// Distances at which any number of pairs may all be at once.
Range mqar_distances(const TaskOptions& task) {
  return {2 * task.items, (task.seq_len - 2 * task.items) / 2 * 2};
}

/// Slots in which the query of a pair has a distance in the range.
Range slots_of_pair(const TaskOptions& task, int64_t pair) {
  const int64_t nearest = 2 * (task.items - pair), slots = (task.seq_len - 2 * task.items) / 2;
  return {
      std::max<int64_t>(0, (task.least_distance - nearest + 1) / 2),
      task.most_distance < nearest ? -1 : std::min(slots - 1, (task.most_distance - nearest) / 2)};
}

/// A slot for each pair's query, none twice.
std::vector<int64_t> draw_slots(const TaskOptions& task, Draws& draws) {
  const int64_t count = (task.seq_len - 2 * task.items) / 2;
  std::vector<char> taken(size_t(count), 0);
  std::vector<int64_t> slots;
  if (task.most_distance == 0) {
    const PowerLaw law(count);
    while (std::ssize(slots) < task.items) {
      const int64_t slot = law.draw(draws);
      if (std::exchange(taken[size_t(slot)], 1) == 0) slots.push_back(slot);
    }
    return slots;
  }
  for (int64_t pair = 0; pair < task.items; ++pair) {
    const auto [first, last] = slots_of_pair(task, pair);
    const int64_t width = last - first + 1;
    if (width < 1) break;
    const int64_t drawn = draws.below(width);
    int64_t tried = 0;
    while (tried < width && taken[size_t(first + (drawn + tried) % width)] != 0) ++tried;
    if (tried == width) break;
    slots.push_back(first + (drawn + tried) % width);
    taken[size_t(slots.back())] = 1;
  }
  if (std::ssize(slots) == task.items) return slots;
  // too narrow for chance: all at one distance, so that each slot is the one behind the last
  const auto [nearest, farthest] = mqar_distances(task);
  const int64_t least = std::max(nearest, (task.least_distance + 1) / 2 * 2);
  const int64_t most = std::min(farthest, task.most_distance / 2 * 2);
  const int64_t distance = least + 2 * draws.below((most - least) / 2 + 1);
  slots.clear();
  for (int64_t pair = 0; pair < task.items; ++pair) {
    slots.push_back((distance - nearest) / 2 + pair);
  }
  return slots;
}

TaskSample make_mqar(const TaskOptions& task, std::string_view, Draws& draws) {
  const int64_t first_value = task.vocabulary / 2;
  const Permutation keys(draws.bits(), first_value - 1);
  const Permutation values(draws.bits(), task.vocabulary - first_value);
  TaskSample sample{std::vector<int32_t>(size_t(task.seq_len)), {}};
  std::vector<char> is_key(size_t(task.vocabulary), 0);
  const auto put_pair = [&](int64_t pair, int64_t place) {
    const int64_t key = 1 + keys(pair);
    is_key[size_t(key)] = 1;
    sample.tokens[size_t(place)] = int32_t(key);
    sample.tokens[size_t(place + 1)] = int32_t(first_value + values(pair));
  };
  const std::vector<int64_t> slots = draw_slots(task, draws);
  for (int64_t pair = 0; pair < task.items; ++pair) {
    const int64_t query = 2 * task.items + 2 * slots[size_t(pair)];
    put_pair(pair, 2 * pair);
    put_pair(pair, query);
    sample.answers.push_back({query + 1, query - 2 * pair});
  }
  std::ranges::sort(sample.answers, {}, &TaskSample::Answer::place);
  for (int32_t& token : sample.tokens) {
    if (token != 0) continue;
    do token = int32_t(draws.between(1, task.vocabulary - 1));
    while (is_key[size_t(token)] != 0);
  }
  return sample;
}

// ---- induction, copy, passkey: the answers stand at the end ----

void answer_at_end(TaskSample& sample, int64_t count, int64_t distance) {
  const int64_t end = std::ssize(sample.tokens);
  for (int64_t place = end - count; place < end; ++place) {
    sample.tokens[size_t(place)] = sample.tokens[size_t(place - distance)];
    sample.answers.push_back({place, distance});
  }
}

TaskSample random_ids(const TaskOptions& task, int32_t first_id, Draws& draws) {
  TaskSample sample{std::vector<int32_t>(size_t(task.seq_len)), {}};
  for (int32_t& id : sample.tokens) id = int32_t(draws.between(first_id, task.vocabulary - 1));
  return sample;
}

Range induction_distances(const TaskOptions& task) { return {2, task.seq_len - 2}; }

TaskSample make_induction(const TaskOptions& task, std::string_view, Draws& draws) {
  const int64_t distance = draws.between(task.least_distance, task.most_distance);
  TaskSample sample = random_ids(task, 2, draws);
  const size_t last = sample.tokens.size() - 1;
  sample.tokens[last - 1] = sample.tokens[last - 1 - size_t(distance)] = 1;
  answer_at_end(sample, 1, distance);
  return sample;
}

Range copy_distances(const TaskOptions& task) {
  return {task.items + 1, task.seq_len - task.items - 1};
}

TaskSample make_copy(const TaskOptions& task, std::string_view, Draws& draws) {
  const int64_t distance = draws.between(task.least_distance, task.most_distance);
  TaskSample sample = random_ids(task, 3, draws);
  const int64_t copied = task.seq_len - task.items;
  sample.tokens[size_t(copied - distance - 1)] = 2;
  sample.tokens[size_t(copied - 1)] = 1;
  answer_at_end(sample, task.items, distance);
  return sample;
}

Range passkey_distances(const TaskOptions& task) {
  return {task.items + std::ssize(kToldEnd) + std::ssize(kAsked),
          task.seq_len - task.items - std::ssize(kTold)};
}

TaskSample make_passkey(const TaskOptions& task, std::string_view haystack, Draws& draws) {
  const auto [nearest, farthest] = passkey_distances(task);
  const int64_t distance = draws.between(task.least_distance, task.most_distance);
  const int64_t text_bytes = farthest - nearest, before = farthest - distance;
  const std::string_view text = haystack.substr(
      size_t(draws.below(std::ssize(haystack) - text_bytes + 1)), size_t(text_bytes));
  std::string content(text.substr(0, size_t(before)));
  content += kTold;
  for (int64_t i = 0; i < task.items; ++i) content += char('0' + draws.below(10));
  content += kToldEnd;
  content += text.substr(size_t(before));
  content += kAsked;
  content.resize(size_t(task.seq_len));
  TaskSample sample;
  for (const char byte : content) sample.tokens.push_back(static_cast<uint8_t>(byte));
  answer_at_end(sample, task.items, distance);
  return sample;
}

/// A row for each task: what it makes of the options, and which of them can be.
struct TaskKind {
  const char* name;
  int64_t seq_len, vocabulary, items;  // the defaults; items 0: as many as there is room for
  int64_t least_vocabulary;
  Range (*distances)(const TaskOptions& task);
  TaskSample (*make)(const TaskOptions& task, std::string_view haystack, Draws& draws);
};

constexpr TaskKind kTaskKinds[] = {
    {"mqar", 64, 256, 4, 4, mqar_distances, make_mqar},
    {"induction", 256, 16, 1, 4, induction_distances, make_induction},
    {"copy", 64, 32, 0, 5, copy_distances, make_copy},
    {"passkey", 512, 257, 5, 257, passkey_distances, make_passkey},
};

void check_sizes(const TaskOptions& task, int64_t least_vocabulary, Range possible) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const auto refuse = [&](const std::string& why, const std::string& advice) {
    throw UsageError(fmt::format("{} with {}", task.name, why), advice);
  };
  if (task.name == "passkey" && task.vocabulary != least_vocabulary) {
    refuse(fmt::format("a vocabulary of {}: it is made of bytes", task.vocabulary),
           "Leave --vocabulary out.");
  }
  if (task.vocabulary < least_vocabulary || task.vocabulary > kMost) {
    refuse(fmt::format("a vocabulary of {}", task.vocabulary),
           fmt::format("Choose --vocabulary {} or more.", least_vocabulary));
  }
  if (task.name == "induction" && task.items != 1) {
    refuse(fmt::format("{} items: it has one", task.items),
           "Leave --items out, or take --task mqar.");
  }
  if (task.name == "mqar" && task.items >= task.vocabulary / 2) {
    refuse(fmt::format("{} items: a vocabulary of {} has {} keys", task.items, task.vocabulary,
                       task.vocabulary / 2 - 1),
           fmt::format("Choose --vocabulary {} or more, or fewer --items.", 2 * task.items + 2));
  }
  if (possible.first > possible.last || task.items < 1) {
    refuse(fmt::format("{} item{} in {} tokens: too few tokens", task.items,
                       task.items == 1 ? "" : "s", task.seq_len),
           "Choose a longer --seq-len, or fewer --items.");
  }
}

/// Those of mqar are even, and single pairs may stand outside of what all of them can have.
void check_distances(const TaskOptions& task, Range possible) {
  const bool pairs = task.name == "mqar";
  const int64_t step = pairs ? 2 : 1, least = task.least_distance, most = task.most_distance;
  const bool some = std::max(possible.first, (least + step - 1) / step * step) <=
                    std::min(possible.last, most / step * step);
  const bool inside = pairs || (possible.first <= least && most <= possible.last);
  if (least >= 1 && some && inside) return;
  throw UsageError(fmt::format("{} of {} tokens has no distances of {} to {}", task.name,
                               task.seq_len, least, most),
                   fmt::format("Choose --distance from {}..{}{}, or another --seq-len.",
                               possible.first, possible.last, pairs ? ", even ones" : ""));
}

std::string read_haystack(const TaskOptions& task, int64_t needed_bytes) {
  if (task.text.empty()) {
    throw UsageError("passkey hides a number in a text, and has none",
                     "Name a long text with --text FILE.");
  }
  if (std::error_code ignored; !std::filesystem::is_regular_file(task.text, ignored)) {
    throw Error(fmt::format("cannot read {}: it is no file", task.text), "--text takes the path of a text file.");
  }
  std::ifstream file(task.text, std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  if (!file)
    throw Error(fmt::format("cannot read {}", task.text), "--text takes the path of a text file.");
  if (std::ssize(text) < needed_bytes) {
    throw Error(
        fmt::format("{} has {} bytes, a sample needs {}", task.text, text.size(), needed_bytes),
        "Name a longer text, or choose a shorter --seq-len.");
  }
  if (text.find(kTold.substr(1)) != std::string::npos) {
    throw Error(fmt::format("{} already tells a pass key", task.text), "Name another text.");
  }
  return text;
}

void set_default(int64_t& value, int64_t otherwise) {
  if (value == 0) value = otherwise;
}

}  // namespace

Task::Task(const TaskOptions& options) : options_(options) {
  const auto* const kind = std::ranges::find(kTaskKinds, options.name, &TaskKind::name);
  if (kind == std::end(kTaskKinds)) {
    std::string known;
    for (const std::string& name : task_names()) known += (known.empty() ? "" : ", ") + name;
    throw UsageError(fmt::format("there is no task \"{}\"", options.name),
                     "Known tasks: " + known + ".");
  }
  kind_ = size_t(kind - kTaskKinds);
  set_default(options_.seq_len, kind->seq_len);
  set_default(options_.vocabulary, kind->vocabulary);
  set_default(options_.items, kind->items);
  set_default(options_.items, (options_.seq_len - 2) / 2);
  const Range possible = kind->distances(options_);
  check_sizes(options_, kind->least_vocabulary, possible);
  if (options_.most_distance != 0) {
    check_distances(options_, possible);
  } else if (kind->make != make_mqar) {
    options_.least_distance = possible.first;
    options_.most_distance = possible.last;
  }
  if (kind->make == make_passkey) {
    haystack_ = read_haystack(options_, possible.last - possible.first);
  } else if (!options_.text.empty()) {
    throw UsageError(fmt::format("{} is made of ids, not of a text", options_.name),
                     "--text is for --task passkey.");
  }
}

std::unique_ptr<Tokenizer> Task::tokenizer() const {
  if (kTaskKinds[kind_].make == make_passkey) return make_byte_tokenizer();
  return make_id_tokenizer("ids", options_.vocabulary, 0);
}

TaskSample Task::sample(int64_t index) const {
  Draws draws(uint64_t(options_.seed), hash_name(options_.name) + uint64_t(index));
  return kTaskKinds[kind_].make(options_, haystack_, draws);
}

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for (const TaskKind& kind : kTaskKinds) names.emplace_back(kind.name);
  return names;
}

}  // namespace ringlet
