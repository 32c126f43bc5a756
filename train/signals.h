#pragma once

namespace ringlet {

/// From here on SIGINT and SIGTERM only ask the program to stop, which it says; a second one ends it at once, with
/// exit code 128 + its number.
void install_signal_handlers();

/// SIGPIPE and SIGXFSZ: a write that fails is an error of that write, not the end of the program.
void ignore_write_signals();

/// Has SIGINT or SIGTERM come? Any thread may ask.
bool stop_requested();

}  // namespace ringlet
