#!/bin/sh
# install.sh [--root DIR]                      installs the kernel beside this script
# install.sh [--root DIR] --uninstall [RELEASE]
#
# For guests whose distribution does not take Debian packages. The kernel becomes the one that boots, the others stay in
# the boot loader's menu: extlinux or syslinux (Alpine's layout included), what `vmmlinux image` sets up, GRUB, or GRUB with
# the entries of /boot/loader/entries (Red Hat's family). A GRUB that does not read /etc/default/grub.d, as Debian's does, gets
# an entry and chooses as before. An initial RAM disk is made where the guest has a program for that: initramfs-tools, dracut,
# mkinitfs, mkinitcpio, booster.
# The kernel itself needs none if the root is a partition named as root=/dev/… or root=PARTUUID=….
#
# Nothing is changed if the kernel cannot mount what /etc/fstab, the running root and the boot entry's command line name.
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

. "$here/mountable.sh"

# Runs a program of the guest's.
inside() {
	if [ -n "$root" ]; then chroot "$root" "$@"; else "$@"; fi
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
	if guest_has update-initramfs; then
		inside update-initramfs -c -k "$release"
	elif guest_has dracut; then
		inside dracut --force --kver "$release" "/boot/initramfs-$release.img"
	elif guest_has mkinitfs; then
		inside mkinitfs -o "/boot/initramfs-$release" "$release"
	elif guest_has mkinitcpio; then
		inside mkinitcpio -k "$release" -g "/boot/initramfs-$release.img"
	elif guest_has booster; then
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
	if guest_has update-grub; then
		inside update-grub
	elif [ -d "$root/boot/grub2" ]; then
		inside grub2-mkconfig -o /boot/grub2/grub.cfg
	else
		inside grub-mkconfig -o /boot/grub/grub.cfg
	fi
}

# The configuration that GRUB boots by, if the guest has one.
grub_cfg() {
	for name in grub2/grub.cfg grub/grub.cfg; do
		if [ -f "$root/boot/$name" ]; then
			echo "$root/boot/$name"
			return
		fi
	done
}

# --- /boot/loader/entries (the Boot Loader Specification), which GRUB reads where its configuration says blscfg
entries=/boot/loader/entries
uses_entries() {
	[ -d "$root$entries" ] && [ -n "$(grub_cfg)" ] && grep -qw blscfg "$(grub_cfg)"
}
grub_environment() {
	environment=$(grub_cfg)
	echo "${environment%/*}/grubenv"
}
saved_entry() {
	sed -n 's/^saved_entry=//p' "$(grub_environment)" 2>/dev/null | head -n 1
}
# The entry that boots by default: the saved one, or that of the highest version.
model_entry() {
	saved=$root$entries/$(saved_entry).conf
	if [ -f "$saved" ] && [ "$saved" != "$root$entries/vmmlinux-$release.conf" ]; then
		echo "$saved"
		return
	fi
	for file in "$root$entries"/*.conf; do
		case $file in */vmmlinux-"$release".conf | *rescue*) continue ;; esac
		[ ! -f "$file" ] || echo "$file"
	done | sort -V | tail -n 1
}
of_entry() { # FILE KEYWORD
	awk -v key="$2" '$1 == key { sub(/^[ \t]*[^ \t]+[ \t]+/, ""); print; exit }' "$1"
}
# The directory of /boot as the loader names it: /boot may be a partition of its own.
place_of() { # PATH-OF-A-KERNEL
	if [ -e "$root/boot$1" ]; then
		echo /
	elif [ -e "$root$1" ]; then
		echo /boot/
	fi
}
entries_install() {
	model=$(model_entry)
	place=$(place_of "$(of_entry "$model" linux)")
	initrd=$(find_initrd)
	options=$(of_entry "$model" options)
	case " $options " in
	*" console=ttyS"*) ;;
	*) options="$options console=ttyS0,115200" ;;
	esac
	[ -n "$initrd" ] || options=$(by_partition "$options")
	entry=$root$entries/vmmlinux-$release.conf
	was=$(sed -n "s/^$mark was //p" "$entry" 2>/dev/null) || was=
	[ -n "$was" ] || was=$(saved_entry)
	{
		echo "$mark was $was"
		echo "title Linux $release"
		echo "version $release"
		echo "linux $place${kernel##*/}"
		[ -z "$initrd" ] || echo "initrd $place$initrd"
		echo "options $options"
		grep -E '^grub_(users|arg|class)[[:space:]]' "$model" || :
	} >"$entry.vmmlinux-new"
	mv -f "$entry.vmmlinux-new" "$entry"
	save_entry "vmmlinux-$release"
}
# Has GRUB's environment name the entry that boots, or none for GRUB's own choice.
save_entry() { # NAME
	editor=grub2-editenv
	guest_has "$editor" || editor=grub-editenv
	guest_has "$editor" || return 0
	environment=$(grub_environment)
	if [ -n "$1" ]; then
		inside "$editor" "${environment#"$root"}" set "saved_entry=$1"
	else
		inside "$editor" "${environment#"$root"}" unset saved_entry
	fi
}
entries_uninstall() {
	entry=$root$entries/vmmlinux-$release.conf
	[ -f "$entry" ] || return 0
	if [ "$(saved_entry)" = "vmmlinux-$release" ]; then
		save_entry "$(sed -n "s/^$mark was //p" "$entry")"
	fi
	rm -f "$entry"
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

# The command line that the guest boots by now, and the file that it is from.
look_at_loader() {
	if [ -x "$root/usr/lib/vmmlinux/install-kernel" ]; then
		looked="$looked, /usr/lib/vmmlinux/install-kernel"
	elif uses_entries; then
		model=$(model_entry)
		[ -n "$model" ] || die "nothing was changed: GRUB reads $entries, and there is no entry to make one like"
		[ -n "$(place_of "$(of_entry "$model" linux)")" ] ||
			die "nothing was changed: ${model#"$root"} boots $(of_entry "$model" linux), which is neither in / nor in /boot: add an entry for $kernel by hand"
		look_at_command_line "${model#"$root"}" "$(of_entry "$model" options)"
		makes_initrd || by_partition "$(of_entry "$model" options)" >/dev/null
	elif [ -n "$(grub_cfg)" ]; then
		look_at_command_line "$(grub_cfg | sed "s,^$root,,")" "$(awk '
			$1 ~ /^linux(16|efi)?$/ && $2 !~ /memtest/ { sub(/^[ \t]*[^ \t]+[ \t]+[^ \t]+/, ""); print; exit }' "$(grub_cfg)")"
	elif [ -n "$(extlinux_conf)" ]; then
		conf=$(extlinux_conf)
		append=$(default_entry "$conf" | value APPEND)
		look_at_command_line "${conf#"$root"}" "$append"
		makes_initrd || by_partition "$append" >/dev/null
	fi
}

install() {
	[ -f "$here$kernel" ] || die "there is no ${kernel#/} beside this script"
	[ -f "$here/boot/config-$release" ] || die "there is no boot/config-$release beside this script: what the kernel can mount is not known"
	config=$(cat "$here/boot/config-$release")
	look_at_fstab
	look_at_running_root
	look_at_loader
	can_be_mounted || exit 1
	say "looked at: ${looked#, }"

	[ -e "$root$kernel" ] || half_done=yes
	for file in vmlinuz config System.map; do
		[ ! -f "$here/boot/$file-$release" ] || put "$here/boot/$file-$release" boot
	done
	rm -rf "$root/$modules.new"
	mkdir -p "$root/$modules.new"
	[ ! -d "$here/lib/modules/$release" ] || cp -R "$here/lib/modules/$release/." "$root/$modules.new/"
	cp "$here/install.sh" "$here/mountable.sh" "$root/$modules.new/"
	rm -rf "$root/$modules"
	mv "$root/$modules.new" "$root/$modules"
	make_entry
	say "to undo all this: sh /$modules/install.sh --uninstall"
}

# Has the boot loader boot it, and says what was found afterwards.
make_entry() {
	if [ -x "$root/usr/lib/vmmlinux/install-kernel" ]; then
		run_hooks postinst
		make_initrd
		has_hook zz-vmmlinux || inside /usr/lib/vmmlinux/install-kernel "$release" "$kernel"
		say "$release boots next (syslinux, as vmmlinux image sets it up); the others stay in its menu"
	elif uses_entries; then
		run_hooks postinst
		make_initrd
		entries_install
		if [ "$(saved_entry)" = "vmmlinux-$release" ] && grep -q saved_entry "$(grub_cfg)"; then
			say "$release boots next (GRUB, by $entries/vmmlinux-$release.conf); the others stay in its menu"
		else
			say "$release is in GRUB's menu ($entries/vmmlinux-$release.conf); which kernel boots is up to GRUB: grubby --set-default $kernel"
		fi
	elif [ -d "$root/boot/grub" ] || [ -d "$root/boot/grub2" ]; then
		! can_choose || choose
		run_hooks postinst
		make_initrd
		has_hook zz-update-grub || update_grub || die "GRUB could not be told of it"
		[ -n "$(grub_cfg)" ] && grep -qF "vmlinuz-$release" "$(grub_cfg)" ||
			die "GRUB's configuration has no entry for $kernel: its program was run and made none"
		if can_choose; then
			say "$release boots next (GRUB, by $grub_choice); the others stay in its menu"
		else
			say "$release is in GRUB's menu; which kernel boots is up to GRUB_DEFAULT in /etc/default/grub: 0 is the highest version"
		fi
	elif [ -n "$(extlinux_conf)" ]; then
		run_hooks postinst
		make_initrd
		conf=$(extlinux_conf)
		extlinux_install "$conf"
		default_entry "$conf" | grep -qF "${kernel##*/}" || die "${conf#"$root"} does not boot $kernel by default"
		say "$release boots next (${conf#"$root"}); the others stay in its menu"
	else
		run_hooks postinst
		make_initrd
		say "$kernel is installed, but no boot loader was found (extlinux, syslinux, GRUB): add it to yours"
		say "its command line: console=ttyS0,115200 root=… rootwait ro"
	fi
}

remove_files() {
	for name in "vmlinuz-$release" "config-$release" "System.map-$release" $initrd_names; do
		rm -f "$root/boot/$name"
	done
	rm -f "$root$entries/vmmlinux-$release.conf"
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
	entries_uninstall
	remove_files
	run_hooks postrm
	if ! uses_entries && { [ -d "$root/boot/grub" ] || [ -d "$root/boot/grub2" ]; }; then
		[ -e "$root/etc/kernel/postrm.d/zz-update-grub" ] || update_grub
	fi
	say "$release is gone"
}

"$task"
exit
