// In builds that count executed lines _exit becomes this one (the linker's --wrap): child processes that end without
// exit handlers write their counts too.
extern "C" {
void __gcov_dump();
[[noreturn]] void __real__exit(int code);
[[noreturn]] void __wrap__exit(int code) {
  __gcov_dump();
  __real__exit(code);
}
}
