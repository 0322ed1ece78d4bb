#!/bin/sh
# Copies what Larder runs, and what that needs, out of a Debian tree: the image has no
# shell, no package manager and nothing else to keep up to date.
#
#   collect.sh ROOT OUT      ROOT: a tree with the packages of ./packages; OUT: a new folder
#
# Both ways to the image use it: the Dockerfile and `cargo xtask image`.
set -eu

root=${1%/}
out=$2
programs="blkid blockdev btrfs cryptsetup dmsetup dumpe2fs e2fsck findmnt fstrim losetup lsblk
    mkfs.btrfs mkfs.ext4 mkfs.xfs mount resize2fs tune2fs umount wipefs
    xfs_db xfs_growfs xfs_io xfs_repair"
# What Larder itself is linked with.
libraries="libc.so.6 libgcc_s.so.1 libm.so.6"

in_root() { if [ -n "$root" ]; then chroot "$root" "$@"; else "$@"; fi; }

fail() {
    echo "collect.sh: $*" >&2
    exit 1
}

# A path in ROOT without symbolic links, in /usr wherever Debian had it before.
real() {
    path=$(if [ -n "$root" ]; then
        # Links are those of ROOT, not of the machine that builds.
        chroot "$root" /usr/bin/readlink -f "$1"
    else
        readlink -f "$1"
    fi) || fail "no $1 in the packages"
    case $path in /usr/*) echo "$path" ;; *) echo "/usr$path" ;; esac
}

# One file to the same place, and under the name that it was asked for by.
take() {
    from=$(real "$1")
    [ -f "$root$from" ] || from=${from#/usr}
    [ -f "$root$from" ] || fail "no $1 in the packages"
    to=$(real "$1")
    mkdir -p "$out${to%/*}"
    [ -e "$out$to" ] || install -m 755 "$root$from" "$out$to"
    case $1 in /usr/*) name=$1 ;; *) name=/usr$1 ;; esac
    if [ "$name" != "$to" ]; then
        mkdir -p "$out${name%/*}"
        [ -e "$out$name" ] || [ -L "$out$name" ] || ln -s "$to" "$out$name"
    fi
}

mkdir -p "$out/usr/bin" "$out/usr/sbin" "$out/usr/lib" "$out/usr/lib64"
for name in bin sbin lib lib64; do
    ln -s "usr/$name" "$out/$name"
done

loader=
for path in /lib64/ld-linux-x86-64.so.2 /lib/ld-linux-aarch64.so.1; do
    [ ! -e "$root$path" ] || loader=$path
done
[ -n "$loader" ] || fail "no dynamic loader in $1 (hint: amd64 and arm64 are supported)"
take "$loader"

found=
for name in $programs; do
    path=
    for folder in /usr/sbin /usr/bin /sbin /bin; do
        [ -n "$path" ] || [ ! -e "$root$folder/$name" ] || path=$folder/$name
    done
    [ -n "$path" ] || fail "no $name in the packages"
    take "$path"
    found="$found $path"
done

triplet=$(in_root "$loader" --list /usr/bin/env | sed -n 's,.*=> .*/lib/\([^/]*\)/libc\.so\.6 .*,\1,p')
[ -n "$triplet" ] || fail "cannot tell where libraries are"
for name in $libraries; do
    take "/usr/lib/$triplet/$name"
done
for path in $found; do
    in_root "$loader" --list "$path"
done | sed -n 's,.* => \(/[^ ]*\) (.*,\1,p' | sort -u >"$out/libraries"
while read -r path; do
    take "$path"
done <"$out/libraries"
rm "$out/libraries"

mkdir -p "$out/etc/larder" "$out/dev" "$out/proc" "$out/sys" "$out/run" "$out/tmp" "$out/var/lib" "$out/root"
chmod 1777 "$out/tmp"
ln -s /run "$out/var/run"
install -m 644 "$root/etc/mke2fs.conf" "$out/etc/mke2fs.conf"
printf 'root:x:0:0:root:/root:/sbin/nologin\nlarder:x:65532:65532:larder:/:/sbin/nologin\n' >"$out/etc/passwd"
printf 'root:x:0:\nlarder:x:65532:\n' >"$out/etc/group"
printf 'hosts: files dns\npasswd: files\ngroup: files\n' >"$out/etc/nsswitch.conf"

# The licences of all that may be in there.
for file in "$root"/usr/share/doc/*/copyright; do
    package=${file%/copyright}
    package=${package##*/}
    mkdir -p "$out/usr/share/doc/$package"
    cp -L "$file" "$out/usr/share/doc/$package/copyright"
done
