#pragma once

#include <string_view>

#include "train/report/html.h"
#include "train/scale/study.h"

namespace ringlet {

/// Adds a study's tables and plots to a page. The plots' names begin with `prefix`, so that one page can hold several.
void add_study(HtmlPage& page, const Study& study, std::string_view prefix);

}  // namespace ringlet
