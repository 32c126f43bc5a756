#pragma once

#include <cstdint>

namespace ringlet {

enum class OutputFormat : uint8_t { text, json };  // json: one object on stdout

}  // namespace ringlet
