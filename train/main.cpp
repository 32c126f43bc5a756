#include "train/cli.h"

int main(int argument_count, char** arguments) { return ringlet::run_cli(argument_count, arguments); }
