#include <cstdio>
#include <cstdlib>

#include "train/cli.h"

int main(int argument_count, char** arguments) {
  const int code = ringlet::run_cli(argument_count, arguments);
  // A rank that is stuck may still run on its thread: nothing may be destroyed under it.
  if (code != 0) {
    std::fflush(nullptr);
    std::_Exit(code);
  }
  return 0;
}
