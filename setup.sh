#!/bin/sh
# Installs the tools that building ggml needs and this machine lacks. Touches nothing else, and does
# nothing if everything is there.
set -eu

has() { command -v "$1" >/dev/null 2>&1; }

# Where bindgen will look for it.
has_libclang() {
    for file in ${LIBCLANG_PATH:+"$LIBCLANG_PATH"/libclang.so* "$LIBCLANG_PATH"/libclang-[0-9]*.so*} \
        /usr/lib*/libclang.so* /usr/local/lib*/libclang.so* /usr/lib/*-linux-gnu/libclang[.-][0-9s]* \
        /usr/lib*/llvm*/lib*/libclang.so* /Library/Developer/CommandLineTools/usr/lib/libclang.dylib \
        /Applications/Xcode.app/Contents/Developer/Toolchains/*/usr/lib/libclang.dylib \
        /opt/homebrew/opt/llvm/lib/libclang.dylib /usr/local/opt/llvm/lib/libclang.dylib; do
        [ -e "$file" ] && return 0
    done
    return 1
}

packages=
need() { # PACKAGE WHAT-FOR
    [ -n "$packages" ] || echo "setup: ggml is C++ and is compiled here; for that this machine lacks:"
    echo "  $1: $2"
    packages="$packages $1"
}

[ -n "${CXX:-}" ] || has c++ || need g++ "compiles ggml (or set CXX to a C++17 compiler of yours)"
has cmake || need cmake "ggml's build system"
has ninja || need ninja-build "runs cmake's builds (minimal Debian has no make either)"
has ccache || ! has apt-get || need ccache "makes every later build of ggml a matter of seconds"
has_libclang || need libclang "bindgen reads ggml's headers with it"
[ -n "$packages" ] || exit 0

if ! has apt-get; then
    echo "setup: this is not Debian or Ubuntu: please install these by hand." >&2
    echo "  Fedora: dnf install gcc-c++ cmake ninja-build clang-libs" >&2
    echo "  Arch:   pacman -S gcc cmake ninja clang" >&2
    echo "  macOS:  xcode-select --install; brew install cmake ninja llvm" >&2
    exit 1
fi

as_root=
if [ "$(id -u)" -ne 0 ]; then
    as_root=sudo
    has sudo || { echo "setup: not root and no sudo: run this script as root." >&2; exit 1; }
fi
run() {
    echo "setup: $*"
    "$@"
}

run $as_root apt-get update -qq
# libclang-dev names the distribution's version (14 on Debian 12); the library alone is a third of its size.
version=$(apt-cache depends libclang-dev | sed -n 's/.*Depends: libclang-\([0-9]*\)-dev$/\1/p' | head -n 1)
libclang=${version:+"libclang1-$version libclang-common-$version-dev"}
packages=$(echo "$packages" | sed "s/ libclang/ ${libclang:-libclang-dev}/")
# shellcheck disable=SC2086 # a list of words
run $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages
