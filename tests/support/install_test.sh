#!/usr/bin/env bash
# Installs a build, moves the folder, and runs the program from there: nothing may come from where it was
# built, and beside the folder's own libraries only what is on every machine, and CUDA's.
#   install_test.sh CMAKE BUILD
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
"$1" --install "$2" --prefix "$scratch/installed"
moved="$scratch/moved here"
mv "$scratch/installed" "$moved"
unset LD_LIBRARY_PATH
cd /
"$moved/bin/ringlet" doctor
"$moved/bin/ringlet" plan "$moved/configs/tiny.toml" >/dev/null
failed=0
for file in "$moved"/bin/*; do
  strange=$(ldd "$file" | grep -E '=>' | grep -v -F "=> $moved/" |
    grep -v -E '^\s*lib((c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so|(cublas|cublasLt)\.so)' || true)
  [ -z "$strange" ] || { echo "${file##*/} needs more than the folder has:"; echo "$strange"; failed=1; }
done
if [ -e "$moved/bin/cuda_tests" ]; then "$moved/bin/cuda_tests" --gtest_list_tests >/dev/null; fi
exit $failed
