# The kernel's C compiler, with a prelude, parsed once into a precompiled header: $place/prelude.h, or $place/net.h for what
# belongs to the network.
#
# $compiler is the compiler itself, $precompile whether it can use a precompiled header (not through ccache).

compile= kernel= odd= source= dependencies= prelude=prelude.h variant=kernel
for argument; do
	case $argument in
	-c) compile=yes ;;
	-mcmodel=kernel) kernel=yes ;;
	-DMODULE) variant=module ;;
	-DKBUILD_MODFILE=\"net/* | -DKBUILD_MODFILE=\"drivers/net/*) prelude=net.h ;;
	-D__KERNEL__ | -DKBUILD_* | -D__KBUILD_* | -DCC_USING_*) ;;
	# Other macros may change what headers mean.
	-D* | -U* | -x*) odd=yes ;;
	-Wp,-MMD,*) dependencies=${argument#-Wp,-MMD,} ;;
	*.c) source=$argument ;;
	esac
done

# Whether the prelude can precede a file: one that defines macros before its last #include may mean to change a header
# with them. Two usual ones do not: tracepoints are created by headers that are made to be read again, and a format for
# messages is for the file's own, so that the status 2 asks for the prelude's to be forgotten.
plain_includes() {
	awk '/^#[ \t]*define[ \t]+pr_fmt\(/ { formats = 1; next }
	     /^#[ \t]*define[ \t]+CREATE_TRACE_POINTS/ { next }
	     /^#[ \t]*(define|undef)/ { defines = 1 }
	     /^#[ \t]*include/ {
		if (defines || /\.c[">]/) { odd = 1; exit }
		included = 1
		if (formats) format = 2
	     }
	     END { exit odd || !included ? 1 : format }' "$source"
}

# The prelude as a compiler's arguments that precede all others have it: without what belongs to one file. Macros of
# the one file's name come after the prelude, or no precompiled header would fit; their place is a file, $1, after the
# text $2.
with_prelude() {
	macros=$1 text=$2
	shift 2
	count=$#
	while [ "$count" -gt 0 ]; do
		argument=$1
		shift
		count=$((count - 1))
		case $argument in
		-include)
			shift
			count=$((count - 1))
			;;
		-DKBUILD_* | -D__KBUILD_*)
			argument=${argument#-D}
			text="$text#define ${argument%%=*} ${argument#*=}
"
			;;
		*) set -- "$@" "$argument" ;;
		esac
	done
	printf %s "$text" >"$macros" || return
	# shellcheck disable=SC2086 # may be two words
	exec $compiler -include "$place/$prelude" -include "$macros" -fpch-deps "$@"
}

# Parses the prelude with the arguments of a compilation that is to use it. Nothing but what is complete may lie in
# *.gch: the compiler looks at all that is there.
parse_prelude() {
	count=$#
	while [ "$count" -gt 0 ]; do
		argument=$1
		shift
		count=$((count - 1))
		case $argument in
		-include | -o)
			shift
			count=$((count - 1))
			;;
		-c | -DKBUILD_* | -D__KBUILD_* | -Wp,-MMD,* | "$source") ;;
		*) set -- "$@" "$argument" ;;
		esac
	done
	# The headers that it depends on are in it only if they are asked for.
	if [ "$precompile" = yes ]; then
		set -- "$@" -MMD -MF "$place/$prelude.$variant/dependencies" -o "$place/$prelude.$variant/parsed"
	else
		set -- "$@" -fsyntax-only
	fi
	# shellcheck disable=SC2086 # may be two words
	$compiler "$@" -x c-header "$place/$prelude" >"$place/$prelude.$variant/log" 2>&1 || return
	[ "$precompile" != yes ] || mv "$place/$prelude.$variant/parsed" "$place/$prelude.gch/$variant"
}

use=no forget=
if [ "$compile,$kernel,$odd" = yes,yes, ] && [ -n "$source" ] && [ -n "$dependencies" ]; then
	plain_includes
	case $? in
	0) use=yes ;;
	2) use=yes forget="#undef pr_fmt
" ;;
	esac
fi
if [ $use = yes ]; then
	# The first to come parses it; until it is there, or if it cannot be, others do without.
	if mkdir "$place/$prelude.$variant" 2>/dev/null; then
		parse_prelude "$@" || : >"$place/$prelude.$variant/failed"
	fi
	if ! [ -e "$place/$prelude.$variant/failed" ]; then
		# What fails with the prelude, by a name that both have, does not without.
		said=$(with_prelude "${dependencies%.d}.macros.h" "$forget" "$@" 2>&1) && {
			[ -z "$said" ] || printf '%s\n' "$said" >&2
			exit 0
		}
	fi
fi
# shellcheck disable=SC2086 # may be two words
exec $compiler "$@"
