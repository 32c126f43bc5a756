# Sourced by train/quickstart.sh and tests/run.sh: installs what is missing, and only that.

build_packages="cmake g++ ninja-build pkg-config libcli11-dev libfmt-dev libtomlplusplus-dev
  nlohmann-json3-dev libxxhash-dev libhwy-dev libsentencepiece-dev
  libhdf5-dev libaec-dev zlib1g-dev"

install_packages() { # package...
  local package missing=() root=()
  for package in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
      missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && { echo "packages: all there"; return; }
  echo "packages: installing ${missing[*]}"
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
      echo "not root, and there is no sudo. As root: apt-get install ${missing[*]}" >&2
      return 1
    }
    root=(sudo)
  fi
  "${root[@]}" apt-get update -qq &&
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
      --no-install-recommends "${missing[@]}" >/dev/null
}
