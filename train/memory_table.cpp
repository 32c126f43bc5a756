#include "train/memory_table.h"

#include <fmt/core.h>

#include <algorithm>

#include "train/console.h"

namespace ringlet {

std::string memory_table(const Arena& arena) {
  std::vector<Arena::Region> regions = arena.regions_at_peak();
  std::ranges::sort(regions, std::greater{}, &Arena::Region::bytes);
  std::vector<std::vector<std::string>> rows{{"memory of rank 0 at its peak", "bytes", "", "share"}};
  const double peak = double(std::max<int64_t>(1, arena.peak_bytes()));
  for (const Arena::Region& region : regions) {
    if (region.bytes == 0) continue;
    rows.push_back({region.name, std::to_string(region.bytes), human_bytes(double(region.bytes)),
                    fmt::format("{:.1f} %", 100.0 * double(region.bytes) / peak)});
  }
  rows.push_back({"in all", std::to_string(arena.peak_bytes()), human_bytes(peak), ""});
  std::string table = format_table(rows);
  while (table.ends_with('\n')) table.pop_back();
  return table;
}

}  // namespace ringlet
