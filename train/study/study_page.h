#pragma once

#include <string_view>

#include "train/report/html.h"
#include "train/study/comparison.h"

namespace ringlet {

/// Adds a study of variants to a page: result, tables, the validation loss of all variants by
/// position, and their runs. The plots' names begin with `prefix`, so that one page can hold
/// several.
void add_variant_study(HtmlPage& page, const StudyResult& study, std::string_view prefix);

}  // namespace ringlet
