#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Inside the guest: a verbs device on a dummy network interface, then the job. Tells run.sh its exit code over the serial console.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8
work=$(tr ' ' '\n' </proc/cmdline | sed -n 's/^arc_work=//p')
# The console in cooked mode turns newlines into CR LF; run.sh takes them out again.
exec </dev/null
echo "GUEST-UP $(uname -r), $(cut -d' ' -f1 /proc/uptime) s after power-on"
for folder in /tmp /run; do mount -t tmpfs tmpfs $folder; done
mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm
ln -sfn /proc/self/fd /dev/fd

finish() {
  echo "GUEST-EXIT $1"
  sync
  exec busybox poweroff -f
}

mkdir -p /lib/modules
mount --bind "$work/kernel/lib/modules" "$(readlink -f /lib/modules)"
ip link set lo up
modprobe -a dummy rdma_rxe ib_uverbs rdma_ucm || { echo "the kernel has no Soft-RoCE"; finish 77; }
modprobe crc32_generic 2>/dev/null
ip link add arc0 type dummy && ip link set arc0 mtu 4200 up && ip addr add 10.9.9.1/24 dev arc0 || finish 1
rdma link add rxe0 type rxe netdev arc0 || finish 1
for _ in $(seq 100); do
  grep -q ACTIVE /sys/class/infiniband/rxe0/ports/1/state 2>/dev/null && break
  sleep 0.1
done
grep -q ACTIVE /sys/class/infiniband/rxe0/ports/1/state || { echo "rxe0 did not become active"; finish 1; }
echo "GUEST-VERBS rxe0, $(cut -d' ' -f1 /proc/uptime) s after power-on"
export UCX_IB_GID_INDEX=0  # the first is the address-derived one, which a dummy interface has at once
ulimit -l unlimited
bash "$work/job"
finish $?
