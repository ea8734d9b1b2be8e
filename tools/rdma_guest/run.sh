#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Boots a Linux guest in which Soft-RoCE makes a working verbs device, and runs a job there: RDMA without hardware or a driver of the host.
# usage: tools/rdma_guest/run.sh <job script> [argument...]      (the job runs in the repository, as root, with rxe0 up)
# The guest sees this machine's files read-only; what it writes goes to memory. Exit code: the job's, 77 when no guest can be had here
# (the reason is printed), 124 when it took longer than RDMA_GUEST_SECONDS. RDMA_GUEST_MEMORY_MB and RDMA_GUEST_CPUS size it.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
work=$root/build/rdma_guest
limit=${RDMA_GUEST_SECONDS:-900}
here=$root/tools/rdma_guest

skip() { echo "rdma guest: skipped: $*"; exit 77; }

[ $# -ge 1 ] || { sed -n '4,6p' "$0"; exit 2; }
[ "$(uname -m)" = x86_64 ] || skip "only written for x86_64, this is $(uname -m)"
for tool in qemu-system-x86_64 busybox cpio depmod modprobe apt-get dpkg-deb; do
  PATH=$PATH:/usr/sbin:/sbin command -v $tool >/dev/null || skip "$tool is missing (make rdma-test installs requirements/apt-rdma.txt)"
done
export PATH=$PATH:/usr/sbin:/sbin
# The guest's own busybox must not need libraries.
busybox=$(command -v busybox)
if ldd "$busybox" >/dev/null 2>&1; then skip "busybox is not static (package busybox-static)"; fi

# A kernel of the distribution: its image and modules are unpacked, never installed.
fetch_kernel() {
  [ -e "$work/kernel/done" ] && return 0
  local meta packages=""
  for meta in linux-image-amd64 linux-image-generic; do
    packages=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances $meta 2>/dev/null |
      grep -oE '^linux-(image|modules|modules-extra)-[0-9][^ ]*' | sort -u || true)
    [ -n "$packages" ] && break
  done
  [ -n "$packages" ] || { echo "no kernel package is known to apt; run apt-get update"; return 1; }
  rm -rf "$work/kernel"
  mkdir -p "$work/kernel/debs"
  # shellcheck disable=SC2086
  (cd "$work/kernel/debs" && apt-get download -q $packages >/dev/null) || { echo "apt-get download $packages failed"; return 1; }
  for deb in "$work"/kernel/debs/*.deb; do dpkg-deb -x "$deb" "$work/kernel"; done
  rm -rf "$work/kernel/debs"
  # Distributions with one /usr put modules there, others do not.
  [ -d "$work/kernel/lib/modules" ] || { mkdir -p "$work/kernel/lib" && mv "$work/kernel/usr/lib/modules" "$work/kernel/lib/"; }
  depmod -b "$work/kernel" "$(ls "$work/kernel/lib/modules")" && touch "$work/kernel/done"
}

make_initrd() {
  local dir=$work/initrd version=$1
  rm -rf "$dir"
  mkdir -p "$dir"/{m,proc,sys,dev,ro,rw,newroot,bin}
  cp "$busybox" "$dir/bin/busybox"
  cp "$here/init" "$dir/init"
  chmod +x "$dir/init"
  local file
  for module in virtio_pci 9pnet_virtio 9p overlay; do  # built-in ones print nothing to load
    while read -r file; do
      grep -qxF "$(basename "$file")" "$dir/m/order" 2>/dev/null && continue
      cp "$file" "$dir/m/" && basename "$file" >>"$dir/m/order"
    done < <(modprobe -d "$work/kernel" -S "$version" --show-depends "$module" | awk '$1 == "insmod" {print $2}')
  done
  (cd "$dir" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initrd.gz"
}

mkdir -p "$work"
reason=$(fetch_kernel) || skip "$reason"
version=$(ls "$work/kernel/lib/modules")
kernel=$(ls "$work"/kernel/boot/vmlinuz-* | head -1)
make_initrd "$version"

# What the guest is to do, without quoting trouble on the kernel's command line.
{ printf 'cd %q\nexec' "$root"; printf ' %q' "$@"; printf '\n'; } >"$work/job"
log=$work/serial.log
echo "rdma guest: kernel $version, at most $limit s; serial console in build/rdma_guest/serial.log"
set +e
timeout --foreground "$limit" qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max -m "${RDMA_GUEST_MEMORY_MB:-2048}" \
  -smp "${RDMA_GUEST_CPUS:-2}" -nographic -no-reboot -nic none -kernel "$kernel" -initrd "$work/initrd.gz" \
  -append "console=ttyS0 panic=-1 quiet arc_guest=$here arc_work=$work" \
  -fsdev local,id=h,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=h,mount_tag=host \
  </dev/null | tee "$log" | tr -d '\r' | sed -u -n '/^GUEST/,$p'
code=${PIPESTATUS[0]}
set -e
[ "$code" -eq 124 ] && { echo "rdma guest: not done after $limit s (RDMA_GUEST_SECONDS)"; exit 124; }
result=$(tr -d '\r' <"$log" | sed -n 's/^GUEST-EXIT //p' | tail -1)
if [ -z "$result" ]; then
  tr -d '\r' <"$log" | tail -20
  grep -q '^GUEST-UP' "$log" || skip "the guest did not boot (QEMU's exit code $code)"
  echo "rdma guest: ended without a result"
  exit 1
fi
exit "$result"
