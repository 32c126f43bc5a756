#pragma once

#include <string>
#include <vector>

#include "train/verify/verify.h"

namespace ringlet::test {

/// A training step with one wrong part, as real programs have had it. The product knows nothing of
/// it: each one is a decorated device or Comm, or another layout table, batch or rule.
struct Defect {
  std::string name;
  RingParts parts;
  VerifyMask mask;       // that shows it
  std::string quantity;  // the first that verification must find wrong
  std::string where;     // what it must say about the place, or a part of that
  /// The first that the sampled check of a long window must find wrong; empty: it does not look
  /// there.
  std::string sampled = {};
};

/// The case that every defect is tried on: zigzag, with chunks of one size.
inline constexpr int64_t kDefectLength = 96;
inline constexpr int kDefectRing = 4;

std::vector<Defect> attention_defects();  // blocks and hops of attention
std::vector<Defect> device_defects();     // what else a rank computes
std::vector<Defect> message_defects();    // what ranks say to each other
std::vector<Defect> input_defects();      // positions, labels, documents, rules of the sums
std::vector<Defect> all_defects();

}  // namespace ringlet::test
