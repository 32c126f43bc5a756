#pragma once

#include <cstddef>
#include <span>
#include <string>

struct XXH3_state_s;

namespace ringlet {

/// XXH3 (128 bits) of bytes that come in parts.
class ContentHash {
 public:
  ContentHash();
  ~ContentHash();
  ContentHash(const ContentHash&) = delete;
  ContentHash& operator=(const ContentHash&) = delete;
  void add(std::span<const std::byte> bytes);
  /// 32 hexadecimal digits.
  std::string hex() const;

 private:
  XXH3_state_s* state_;
};

}  // namespace ringlet
