#!/bin/sh
# install.sh               installs vmmcid from this directory, for distributions without a package of it
# install.sh --uninstall   stops it and takes everything away again but what was changed or added in /etc
#
# DESTDIR=… does that elsewhere.
set -eu
case ${1-} in
"" | --uninstall) ;;
*)
	sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
	exit 2
	;;
esac
cd "$(dirname "$0")"
if [ -z "${DESTDIR-}" ] && [ "$(id -u)" != 0 ]; then
	echo "this takes root (or DESTDIR=…)" >&2
	exit 1
fi
to=${DESTDIR-}
if [ "${1-}" = --uninstall ]; then
	if [ -z "$to" ] && [ -d /run/systemd/system ]; then
		systemctl disable --now vmmcid || true
	elif [ -z "$to" ] && [ -e /etc/init.d/vmmcid ]; then
		rc-service --ifstarted vmmcid stop || true
	fi
	for service in vmmcid vmmcid-poweroff; do
		rm -f "$to/etc/init.d/$service" "$to"/etc/runlevels/*/"$service"
	done
	rm -f "$to/usr/sbin/vmmcid" "$to/usr/share/man/man8/vmmcid.8" \
		"$to/usr/share/bash-completion/completions/vmmcid" "$to/usr/share/zsh/site-functions/_vmmcid" \
		"$to/usr/share/fish/vendor_completions.d/vmmcid.fish" \
		"$to/usr/lib/systemd/system/vmmcid.service" "$to/usr/lib/systemd/system-shutdown/vmmcid"
	if cmp -s etc/vmmcid.toml "$to/etc/vmmcid.toml"; then rm "$to/etc/vmmcid.toml"; fi
	# Only those that are empty.
	rmdir "$to/etc/vmmcid/before-stop.d" "$to/etc/vmmcid/after-resume.d" "$to/etc/vmmcid" 2>/dev/null || true
	if [ -z "$to" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi
	for left in "$to/etc/vmmcid.toml" "$to/etc/vmmcid"; do
		if [ -e "$left" ]; then echo "${left#"$to"} is left: it is yours"; fi
	done
	exit
fi
put() { # MODE FILE DIRECTORY
	mkdir -p "$to$3"
	# Not over the old one: it may be running.
	cp "$2" "$to$3/.${2##*/}.new"
	chmod "$1" "$to$3/.${2##*/}.new"
	mv -f "$to$3/.${2##*/}.new" "$to$3/${2##*/}"
}
put 755 usr/sbin/vmmcid /usr/sbin
put 644 usr/share/man/man8/vmmcid.8 /usr/share/man/man8
put 644 usr/share/bash-completion/completions/vmmcid /usr/share/bash-completion/completions
put 644 usr/share/zsh/vendor-completions/_vmmcid /usr/share/zsh/site-functions
put 644 usr/share/fish/vendor_completions.d/vmmcid.fish /usr/share/fish/vendor_completions.d
mkdir -p "$to/etc/vmmcid/before-stop.d" "$to/etc/vmmcid/after-resume.d"
if [ -e "$to/etc/vmmcid.toml" ]; then
	echo "/etc/vmmcid.toml is left as it is"
else
	put 644 etc/vmmcid.toml /etc
fi
# Where there is OpenRC, there may be directories and programs of systemd's, too: what counts is what runs.
if [ -z "$to" ] && [ -d /run/systemd/system ]; then
	init=systemd
elif [ -d "$to/etc/runlevels" ]; then
	init=openrc
elif [ -d "$to/usr/lib/systemd/system" ]; then
	init=systemd
else
	init=
fi
if [ "$init" = systemd ]; then
	put 644 usr/lib/systemd/system/vmmcid.service /usr/lib/systemd/system
	put 755 usr/lib/systemd/system-shutdown/vmmcid /usr/lib/systemd/system-shutdown
	echo "now: systemctl daemon-reload; systemctl enable --now vmmcid"
elif [ "$init" = openrc ]; then
	put 755 openrc/vmmcid /etc/init.d
	put 755 openrc/vmmcid-poweroff /etc/init.d
	# In Debian's OpenRC the runlevel boot is empty, and never entered.
	if [ -n "$(ls "$to/etc/runlevels/boot" 2>/dev/null)" ]; then level=boot; else level=default; fi
	echo "now: rc-update add vmmcid $level; rc-update add vmmcid-poweroff shutdown; rc-service vmmcid start"
else
	echo "now: let your init run \`/usr/sbin/vmmcid run\` and start it again when it ends with 1"
fi
