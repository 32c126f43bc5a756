#pragma once

#include <utility>

#include "train/plan/rates.h"

namespace ringlet::test {

/// Every operation takes work / rate seconds.
inline Rates flat_rates(double flops, double elements, Link link) {
  Rates rates;
  rates.link = std::move(link);
  for (int op = 0; op < kOpCount; ++op) {
    const double rate = is_matmul(Op(op)) || is_attention(Op(op)) ? flops : elements;
    rates.put(Op(op), {{1, 1, 1}, rate, 1});
  }
  return rates;
}

}  // namespace ringlet::test
