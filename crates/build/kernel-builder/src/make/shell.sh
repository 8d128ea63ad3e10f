# make's shell, for a profile: runs a command as /bin/sh does, and notes what a step of the build cost.
#
# $log is where it goes. A step begins with what kbuild says of it, as "echo '# CC      init/main.o'"; all other commands
# only start further makes, or belong to their reading of makefiles.

case $2 in
*"echo '# "*) ;;
*) exec /bin/sh "$@" ;;
esac
exec bash -c '
	log=$1
	shift
	step=${2#*"echo '\''# "}
	TIMEFORMAT="%3U %3S"
	{ cost=$({ time /bin/sh "$@" >&9 2>&8 8>&- 9>&-; } 2>&1); status=$?; } 8>&2 9>&1
	printf "%s %s\n" "$cost" "${step%%"'\''"*}" >>"$log"
	exit "$status"
' timed "$log" "$@"
