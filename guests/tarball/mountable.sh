# Whether a kernel can mount what a guest mounts: read by install.sh, and the beginning of the Debian package's preinst.
#
# Looks at /etc/fstab, /etc/crypttab, mdadm.conf, the running root, and the command line of the boot entry. `root` is the
# guest's file system, empty for the running one; `config` has lines of the kernel's configuration.

looked=
refused=
missing_builder=

# y, m or n.
kernel_has() { # SYMBOL
	printf '%s\n' "$config" | sed -n "s/^CONFIG_$1=\([ym]\)\$/\1/p" | grep . || echo n
}

# Whether the guest has a program.
guest_has() {
	for directory in /usr/sbin /usr/bin /sbin /bin /usr/local/sbin /usr/local/bin; do
		[ -x "$root$directory/$1" ] && return 0
	done
	return 1
}
makes_initrd() {
	for builder in update-initramfs dracut mkinitfs mkinitcpio booster; do
		! guest_has "$builder" || return 0
	done
	return 1
}

refuse() {
	refused="$refused
  $*"
}

# WHERE is the file that names it, WHEN is early (the root: modules are in the initial RAM disk) or late.
need() { # WHERE WHAT SYMBOL WHEN
	case $(kernel_has "$3") in
	y) ;;
	m)
		if [ "$4" = early ] && ! makes_initrd; then
			missing_builder=yes
			refuse "$1: $2: $3 is a module of this kernel, which only an initial RAM disk can load before the root is there"
		fi
		;;
	*) refuse "$1: $2: this kernel has no $3" ;;
	esac
}
# What no kernel does alone.
need_initrd() { # WHERE WHAT WHEN
	if [ "$3" = early ] && ! makes_initrd; then
		missing_builder=yes
		refuse "$1: $2 needs an initial RAM disk"
	fi
}

need_type() { # WHERE TYPE WHEN
	case $2 in
	ext2 | ext3 | ext4) need "$1" "$2" EXT4_FS "$3" ;;
	xfs) need "$1" "$2" XFS_FS "$3" ;;
	btrfs) need "$1" "$2" BTRFS_FS "$3" ;;
	jfs) need "$1" "$2" JFS_FS "$3" ;;
	f2fs) need "$1" "$2" F2FS_FS "$3" ;;
	vfat | msdos) need "$1" "$2" VFAT_FS "$3" ;;
	exfat) need "$1" "$2" EXFAT_FS "$3" ;;
	ntfs3) need "$1" "$2" NTFS3_FS "$3" ;;
	iso9660) need "$1" "$2" ISO9660_FS "$3" ;;
	udf) need "$1" "$2" UDF_FS "$3" ;;
	squashfs) need "$1" "$2" SQUASHFS "$3" ;;
	erofs) need "$1" "$2" EROFS_FS "$3" ;;
	ufs) need "$1" "$2" UFS_FS "$3" ;;
	nfs | nfs4) need "$1" "$2" NFS_FS "$3" ;;
	cifs | smb3) need "$1" "$2" CIFS "$3" ;;
	9p) need "$1" "$2" 9P_FS "$3" ;;
	overlay) need "$1" "$2" OVERLAY_FS "$3" ;;
	swap) need "$1" "$2" SWAP "$3" ;;
	zfs | bcachefs | reiserfs | nilfs2 | ocfs2 | gfs2) refuse "$1: $2: no kernel of this project has it" ;;
	esac
}

need_crypt() { # WHERE WHAT WHEN
	for symbol in BLK_DEV_DM DM_CRYPT CRYPTO_AES CRYPTO_XTS; do
		need "$1" "$2" "$symbol" "$3"
	done
	need_initrd "$1" "$2" "$3"
}
need_volume() { # WHERE WHAT WHEN
	need "$1" "$2" BLK_DEV_DM "$3"
	need_initrd "$1" "$2" "$3"
}
need_array() { # WHERE WHAT WHEN
	need "$1" "$2" BLK_DEV_MD "$3"
	need_initrd "$1" "$2" "$3"
}

# By the name of a device, as fstab and command lines have it.
need_device() { # WHERE DEVICE WHEN
	case $2 in
	/dev/md*) need_array "$1" "$2 is an array" "$3" ;;
	/dev/mapper/* | /dev/dm-*) need_volume "$1" "$2 is a volume of the device mapper" "$3" ;;
	/dev/disk/* | /dev/block/* | /dev/loop*) ;;
	/dev/*/*) need_volume "$1" "$2 is an LVM volume" "$3" ;;
	UUID=* | LABEL=* | PARTUUID=* | PARTLABEL=*)
		[ -n "$root" ] || {
			device=$(findfs "$2" 2>/dev/null) || device=
			[ -z "$device" ] || need_stack "$1" "$device" "$3"
		}
		;;
	esac
	case $2 in
	/dev/*) [ -n "$root" ] || need_stack "$1" "$2" "$3" ;;
	esac
}

# What a device of the running guest lies on, as /sys knows it.
need_stack() { # WHERE DEVICE WHEN
	node=$(readlink -f "$2" 2>/dev/null) || node=$2
	need_block "$1" "${node##*/}" "$3"
}
need_block() { # WHERE NAME WHEN
	block=$root/sys/class/block/$2
	[ -e "$block" ] || return 0
	case $(cat "$block/dm/uuid" 2>/dev/null) in
	CRYPT-*) need_crypt "$1" "$2 is encrypted" "$3" ;;
	?*) need_volume "$1" "$2 is a volume of the device mapper" "$3" ;;
	esac
	level=$(cat "$block/md/level" 2>/dev/null) || level=
	[ -z "$level" ] || need_array "$1" "$2 is an array" "$3"
	case $level in
	raid0) need "$1" "$2 is $level" MD_RAID0 "$3" ;;
	raid1) need "$1" "$2 is $level" MD_RAID1 "$3" ;;
	raid10) need "$1" "$2 is $level" MD_RAID10 "$3" ;;
	raid4 | raid5 | raid6) need "$1" "$2 is $level" MD_RAID456 "$3" ;;
	esac
	for below in "$block"/slaves/*; do
		[ -e "$below" ] && need_block "$1" "${below##*/}" "$3"
	done
	return 0
}

look_at_fstab() {
	[ -f "$root/etc/fstab" ] || return 0
	looked="$looked, /etc/fstab"
	while read -r device where type options _; do
		case $device in '' | '#'*) continue ;; esac
		case ,${options:-defaults}, in *,noauto,* | *,nofail,* | *,bind,* | *,rbind,*) continue ;; esac
		when=late
		case $where in / | /usr) when=early ;; esac
		need_type "$where in /etc/fstab" "$type" "$when"
		need_device "$where in /etc/fstab" "$device" "$when"
	done <"$root/etc/fstab"
	if grep -qsv '^[[:space:]]*\(#\|$\)' "$root/etc/crypttab"; then
		looked="$looked, /etc/crypttab"
		while read -r name _ _ options; do
			case $name in '' | '#'*) continue ;; esac
			case ,$options, in *,noauto,* | *,nofail,*) continue ;; esac
			need_crypt "$name in /etc/crypttab" "an encrypted disk" late
		done <"$root/etc/crypttab"
	fi
	for arrays in /etc/mdadm/mdadm.conf /etc/mdadm.conf; do
		if grep -qs '^ARRAY' "$root$arrays"; then
			looked="$looked, $arrays"
			need_array "$arrays" "an array" late
		fi
	done
}

# Whether the running system's root is this one: in a chroot, /proc tells of another.
is_running() {
	[ "$(stat -c %d:%i / 2>/dev/null)" = "$(stat -c %d:%i /proc/1/root/. 2>/dev/null)" ]
}

look_at_running_root() {
	mounts=$root/proc/self/mountinfo
	if [ -z "$root" ]; then
		is_running || return 0
	elif [ ! -f "$mounts" ]; then
		mounts=/proc/self/mountinfo
	fi
	set -- $(awk -v point="${root:-/}" '
		$5 == point { for (i = 7; i < NF; i++) if ($i == "-") print $(i + 1), $(i + 2) }' "$mounts" 2>/dev/null | tail -n 1)
	[ $# = 2 ] || return 0
	case $1 in overlay | rootfs | tmpfs) return 0 ;; esac
	looked="$looked, the running root ($1 on $2)"
	need_type "the running root" "$1" early
	need_device "the running root" "$2" early
}

look_at_command_line() { # WHERE COMMAND-LINE
	looked="$looked, $1"
	for word in $2; do
		case $word in
		root=ZFS=* | root=zfs:*) need_type "$word in $1" zfs early ;;
		root=*) need_device "$word in $1" "${word#root=}" early ;;
		rootfstype=*) need_type "$word in $1" "${word#rootfstype=}" early ;;
		rd.lvm.lv=* | rd.lvm.vg=*) need_volume "$word in $1" "an LVM volume" early ;;
		rd.luks.uuid=* | rd.luks.name=* | luks.uuid=* | cryptdevice=* | cryptroot=*) need_crypt "$word in $1" "an encrypted root" early ;;
		rd.md.uuid=*) need_array "$word in $1" "an array" early ;;
		esac
	done
}

# Says why the kernel cannot be installed, and the ways out; true if it can.
can_be_mounted() {
	[ -n "$refused" ] || return 0
	[ -z "${VMMLINUX_UNCHECKED-}" ] || return 0
	{
		echo "nothing was changed: the guest would not come up with Linux $release:$refused"
		echo "looked at: ${looked#, }"
		echo "the ways out:"
		[ -z "$missing_builder" ] ||
			echo "  install a program that makes initial RAM disks: initramfs-tools (Debian), dracut (Red Hat, SUSE), mkinitfs (Alpine), mkinitcpio (Arch)"
		echo "  take a kernel that has it: vmmlinux build --package deb (or tar) builds one for every root of the distributions' installers"
		echo "  for a line of /etc/fstab that the guest can do without: give it the option nofail"
		echo "  to install all the same, set VMMLINUX_UNCHECKED=1"
	} >&2
	return 1
}
