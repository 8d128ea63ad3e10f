#!/bin/sh
# Installs vmmcid from this directory, for distributions without a package of it. DESTDIR=… installs elsewhere.
set -eu
cd "$(dirname "$0")"
if [ -z "${DESTDIR-}" ] && [ "$(id -u)" != 0 ]; then
	echo "this takes root (or DESTDIR=…)" >&2
	exit 1
fi
to=${DESTDIR-}
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
	# In Debian's OpenRC the runlevel boot is empty, and nobody goes there.
	if [ -n "$(ls "$to/etc/runlevels/boot" 2>/dev/null)" ]; then level=boot; else level=default; fi
	echo "now: rc-update add vmmcid $level; rc-update add vmmcid-poweroff shutdown; rc-service vmmcid start"
else
	echo "now: let your init run \`/usr/sbin/vmmcid run\` and start it again when it ends with 1"
fi
