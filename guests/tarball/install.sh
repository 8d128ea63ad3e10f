#!/bin/sh
# install.sh [--root DIR]                      installs the kernel beside this script
# install.sh [--root DIR] --uninstall [RELEASE]
#
# For guests whose distribution does not take Debian packages. The kernel becomes the one that boots, the others stay in
# the boot loader's menu: extlinux or syslinux (Alpine's layout included), what `vmmlinux image` sets up, or GRUB. A GRUB that
# does not read /etc/default/grub.d, as Debian's does, gets an entry and chooses as before. An initial RAM disk is made where
# the guest has a program for that: initramfs-tools, dracut, mkinitfs, mkinitcpio, booster.
# The kernel itself needs none if the root is a partition named as root=/dev/… or root=PARTUUID=….
#
# --root DIR works on a guest's file system that is mounted at DIR; its programs are run by chroot.
# A copy of this script stays in lib/modules/RELEASE, for the day of --uninstall.
set -eu
PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin

root=
task=install
release=
while [ $# -gt 0 ]; do
	case $1 in
	--root)
		root=${2:?--root needs a directory}
		root=${root%/}
		shift
		;;
	--root=*) root=${1#--root=} root=${root%/} ;;
	--uninstall) task=uninstall ;;
	-h | --help)
		sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
		exit 0
		;;
	-*)
		echo "install.sh: $1: there are --root DIR and --uninstall" >&2
		exit 2
		;;
	*) release=$1 ;;
	esac
	shift
done

say() { echo "install.sh: $*"; }
# What was put into the guest so far goes again.
half_done=
die() {
	say "$*" >&2
	[ -z "$half_done" ] || remove_files
	exit 1
}

here=$(cd "$(dirname "$0")" && pwd)
if [ -z "$release" ]; then
	for kernel in "$here"/boot/vmlinuz-*; do
		[ -f "$kernel" ] && release=${kernel##*/vmlinuz-}
	done
	# The copy that stays in the guest.
	[ -n "$release" ] || case $here in
	*/lib/modules/*) release=${here##*/} ;;
	*) die "there is no kernel beside this script, and none is named" ;;
	esac
fi
[ -d "${root:-/}/etc" ] || die "$root is not a guest's file system: it has no etc"
if [ -z "$root" ] && [ "$(id -u)" != 0 ]; then
	die "this takes root"
fi

# Runs a program of the guest's.
inside() {
	if [ -n "$root" ]; then chroot "$root" "$@"; else "$@"; fi
}
# Whether the guest has it.
has() {
	for directory in /usr/sbin /usr/bin /sbin /bin /usr/local/sbin /usr/local/bin; do
		[ -x "$root$directory/$1" ] && return 0
	done
	return 1
}
# lib, or usr/lib where that is a link to it: an absolute link would lead out of --root.
lib=lib
[ -L "$root/lib" ] && lib=usr/lib
modules=$lib/modules/$release
kernel=/boot/vmlinuz-$release
# What is changed in others' files is kept there behind this, to be put back.
mark="# vmmlinux $release:"

initrd_names="initrd.img-$release initramfs-$release initramfs-$release.img"
find_initrd() {
	for name in $initrd_names; do
		if [ -f "$root/boot/$name" ]; then
			echo "$name"
			return
		fi
	done
}
make_initrd() {
	[ -z "$(find_initrd)" ] || return 0
	if has update-initramfs; then
		inside update-initramfs -c -k "$release"
	elif has dracut; then
		inside dracut --force --kver "$release" "/boot/initramfs-$release.img"
	elif has mkinitfs; then
		inside mkinitfs -o "/boot/initramfs-$release" "$release"
	elif has mkinitcpio; then
		inside mkinitcpio -k "$release" -g "/boot/initramfs-$release.img"
	elif has booster; then
		inside booster build --force --kernel-version "$release" "/boot/initramfs-$release.img"
	fi
}

# Debian and its kin have hooks that make the initial RAM disk and tell the boot loader, as their packages use them.
run_hooks() { # postinst or postrm
	for hook in "$root/etc/kernel/$1.d"/*; do
		case ${hook##*/} in
		*[!A-Za-z0-9_-]*) continue ;;
		esac
		# A link there may lead to a place that only the guest knows.
		[ -x "$hook" ] || [ -L "$hook" ] || continue
		if [ "$1" = postinst ]; then parameters=configure; else parameters=remove; fi
		inside env DEB_MAINT_PARAMS="$parameters" INITRD=Yes "${hook#"$root"}" "$release" "$kernel" ||
			say "${hook#"$root"} failed" >&2
	done
}
has_hook() { [ -e "$root/etc/kernel/postinst.d/$1" ] || [ -L "$root/etc/kernel/postinst.d/$1" ]; }

update_grub() {
	if has update-grub; then
		inside update-grub
	elif [ -d "$root/boot/grub2" ]; then
		inside grub2-mkconfig -o /boot/grub2/grub.cfg
	else
		inside grub-mkconfig -o /boot/grub/grub.cfg
	fi
}

# By itself GRUB boots the highest version, which is the guest's own kernel as soon as that is newer. grub-mkconfig of Debian and
# its kin reads what lies in a directory and may choose another.
grub_choice=/etc/default/grub.d/vmmlinux.cfg
can_choose() {
	[ -d "$root${grub_choice%/*}" ] && grep -qs /default/grub.d "$root/usr/sbin/grub-mkconfig" "$root/usr/bin/grub-mkconfig"
}
# The entry has the identifier that 10_linux makes: of the release, and of the root's UUID or device.
choose() {
	cat >"$root$grub_choice" <<-END
		$mark this kernel boots by default, whatever versions others have.
		# install.sh --uninstall removes this file. To keep the kernel and have GRUB choose again, remove it and run update-grub.
		if [ -e $kernel ]; then
		    vmmlinux_root=\${GRUB_DEVICE_UUID:-\$GRUB_DEVICE}
		    [ "\$GRUB_DISABLE_UUID" != true ] || vmmlinux_root=\$GRUB_DEVICE
		    GRUB_DEFAULT=gnulinux-$release-advanced-\$vmmlinux_root
		    case \$GRUB_DISABLE_SUBMENU in
		    y | yes | true) ;;
		    *) GRUB_DEFAULT="gnulinux-advanced-\$vmmlinux_root>\$GRUB_DEFAULT" ;;
		    esac
		fi
	END
}
# Another release's stays.
choose_no_more() {
	! grep -qsF "$mark" "$root$grub_choice" || rm -f "$root$grub_choice"
}

# The configuration of extlinux or syslinux, if the guest has one.
extlinux_conf() {
	for name in extlinux.conf extlinux/extlinux.conf syslinux/extlinux.conf syslinux/syslinux.cfg syslinux.cfg; do
		if [ -f "$root/boot/$name" ]; then
			echo "$root/boot/$name"
			return
		fi
	done
}

# The entry that boots by default: where DEFAULT or MENU DEFAULT points, or the first.
default_entry() { # FILE
	awk '
		{ key = toupper($1) }
		key == "DEFAULT" { wanted = $2 }
		key == "ONTIMEOUT" && wanted == "" { wanted = $2 }
		key == "LABEL" { label = $2; if (first == "") first = label }
		key == "MENU" && toupper($2) == "DEFAULT" { menu = label }
		label != "" { text[label] = text[label] $0 "\n" }
		END {
			if (!(wanted in text)) wanted = menu
			if (!(wanted in text)) wanted = first
			printf "%s", text[wanted]
		}' "$1"
}
value() { # KEYWORD…: the first of them in the entry on standard input
	awk -v keys=" $* " 'index(keys, " " toupper($1) " ") { sub(/^[ \t]*[^ \t]+[ \t]+/, ""); print; exit }'
}

# Replaces a file by standard input, whole.
replace() { # FILE
	cat >"$1.vmmlinux-new"
	cat "$1.vmmlinux-new" >/dev/null && [ -s "$1.vmmlinux-new" ] || die "cannot write $1"
	chmod --reference="$1" "$1.vmmlinux-new" 2>/dev/null || :
	mv -f "$1.vmmlinux-new" "$1"
}

extlinux_install() { # FILE
	extlinux_uninstall "$1"
	entry=$(default_entry "$1")
	[ -n "$entry" ] || die "$1 has no entry to make one like: add one for $kernel by hand"
	old=$(printf '%s\n' "$entry" | value KERNEL LINUX)
	# The loader's own idea of where /boot is.
	case $old in
	*/*) place=${old%/*}/ ;;
	*) place= ;;
	esac
	append=$(printf '%s\n' "$entry" | value APPEND)
	case " $append " in
	*" console=ttyS"*) ;;
	*) append="$append console=ttyS0,115200" ;;
	esac
	initrd=$(find_initrd)
	if [ -z "$initrd" ]; then
		append=$(by_partition "$append")
	fi
	{
		awk -v mark="$mark" -v label="vmmlinux-$release" '
			toupper($1) == "DEFAULT" && $2 !~ /\.c32$/ { print mark, $0; print "DEFAULT " label " " mark; done = 1; next }
			toupper($1) == "ONTIMEOUT" { print mark, $0; print "ONTIMEOUT " label " " mark; next }
			toupper($1) == "MENU" && toupper($2) == "DEFAULT" { print mark, $0; next }
			toupper($1) == "DEFAULT" { done = 1 }
			{ line[++n] = $0; print }
			END { if (!done) print "DEFAULT " label " " mark }' "$1"
		echo "$mark begin"
		echo "LABEL vmmlinux-$release"
		echo "  MENU LABEL Linux $release"
		grep -qiE '^[[:space:]]*DEFAULT[[:space:]].*\.c32' "$1" && echo "  MENU DEFAULT"
		echo "  LINUX $place${kernel##*/}"
		[ -z "$initrd" ] || echo "  INITRD $place$initrd"
		echo "  APPEND ${append# }"
		echo "$mark end"
	} | replace "$1"
	# Alpine's update-extlinux writes the file anew, with every kernel in /boot: this makes it choose the same one.
	settings=$root/etc/update-extlinux.conf
	if [ -f "$settings" ]; then
		awk -v mark="$mark" -v tag="$release" '
			/^default=/ { print mark, $0; print "default=" tag " " mark; next }
			{ print }' "$settings" | replace "$settings"
	fi
}

# Takes back what was changed in a file.
restore() { # FILE
	grep -qF "$mark" "$1" || return 0
	awk -v mark="$mark" '
		$0 == mark " begin" { skip = 1 }
		skip { if ($0 == mark " end") skip = 0; next }
		index($0, mark " ") == 1 { print substr($0, length(mark) + 2); next }
		index($0, " " mark) == length($0) - length(mark) && index($0, " " mark) > 0 { next }
		{ print }' "$1" | replace "$1"
}
extlinux_uninstall() { # FILE
	restore "$1"
	if [ -f "$root/etc/update-extlinux.conf" ]; then
		restore "$root/etc/update-extlinux.conf"
	fi
}

# Without an initial RAM disk the kernel finds its root by PARTUUID or device, not by UUID or label.
by_partition() { # COMMAND-LINE
	out=
	for word in $1; do
		case $word in
		root=UUID=* | root=LABEL=*)
			[ -n "$root" ] || device=$(findfs "${word#root=}" 2>/dev/null) || device=
			partition=$(blkid -s PARTUUID -o value "${device:-/nonexistent}" 2>/dev/null) || partition=
			if [ -z "$partition" ]; then
				say "$word: this needs an initial RAM disk and the guest has no program to make one (mkinitfs, dracut …);" >&2
				die "install one, or name the root as root=/dev/vda… in the boot loader's configuration"
			fi
			word=root=PARTUUID=$partition
			;;
		# Alpine's own, which its initial RAM disk reads.
		modules=*) continue ;;
		esac
		out="$out $word"
	done
	case " $out " in
	*" rootfstype="* | *" rootwait "*) ;;
	*) out="$out rootwait" ;;
	esac
	echo "${out# }"
}

put() { # FILE DIRECTORY
	mkdir -p "$root/$2"
	cp "$1" "$root/$2/.${1##*/}.new"
	mv -f "$root/$2/.${1##*/}.new" "$root/$2/${1##*/}"
}

install() {
	[ -f "$here$kernel" ] || die "there is no ${kernel#/} beside this script"
	[ -e "$root$kernel" ] || half_done=yes
	for file in vmlinuz config System.map; do
		[ ! -f "$here/boot/$file-$release" ] || put "$here/boot/$file-$release" boot
	done
	rm -rf "$root/$modules.new"
	mkdir -p "$root/$modules.new"
	[ ! -d "$here/lib/modules/$release" ] || cp -R "$here/lib/modules/$release/." "$root/$modules.new/"
	cp "$here/install.sh" "$root/$modules.new/install.sh"
	rm -rf "$root/$modules"
	mv "$root/$modules.new" "$root/$modules"

	grub=
	if [ ! -x "$root/usr/lib/vmmlinux/install-kernel" ] && { [ -d "$root/boot/grub" ] || [ -d "$root/boot/grub2" ]; }; then
		grub=yes
		! can_choose || choose
	fi
	run_hooks postinst
	make_initrd
	loader=
	if [ -x "$root/usr/lib/vmmlinux/install-kernel" ]; then
		has_hook zz-vmmlinux || inside /usr/lib/vmmlinux/install-kernel "$release" "$kernel"
		loader="syslinux, as vmmlinux image sets it up"
	elif [ -n "$grub" ]; then
		has_hook zz-update-grub || update_grub || die "GRUB could not be told of it"
		loader="GRUB, by $grub_choice"
	elif [ -n "$(extlinux_conf)" ]; then
		extlinux_install "$(extlinux_conf)"
		loader=$(extlinux_conf)
		loader=${loader#"$root"}
	fi
	if [ -n "$grub" ] && ! can_choose; then
		say "$release is in GRUB's menu; which kernel boots is up to GRUB_DEFAULT in /etc/default/grub: 0 is the highest version"
	elif [ -n "$loader" ]; then
		say "$release boots next ($loader); the others stay in its menu"
	else
		say "$kernel is installed, but no boot loader was found: add it to yours"
		say "its command line: console=ttyS0,115200 root=… rootwait ro"
	fi
	say "to undo all this: sh /$modules/install.sh --uninstall"
}

remove_files() {
	for name in "vmlinuz-$release" "config-$release" "System.map-$release" $initrd_names; do
		rm -f "$root/boot/$name"
	done
	choose_no_more
	# This script may be in it: nothing is read from it any more.
	rm -rf "$root/$modules"
	rmdir "$root/$lib/modules" 2>/dev/null || :
}

uninstall() {
	[ -e "$root$kernel" ] || [ -d "$root/$modules" ] || die "$release is not installed"
	conf=$(extlinux_conf)
	if [ -n "$conf" ]; then
		extlinux_uninstall "$conf"
	fi
	if [ -x "$root/usr/lib/vmmlinux/install-kernel" ] && ! has_hook zz-vmmlinux; then
		inside /usr/lib/vmmlinux/install-kernel --remove "$release"
	fi
	remove_files
	run_hooks postrm
	if [ -d "$root/boot/grub" ] || [ -d "$root/boot/grub2" ]; then
		[ -e "$root/etc/kernel/postrm.d/zz-update-grub" ] || update_grub
	fi
	say "$release is gone"
}

"$task"
exit
