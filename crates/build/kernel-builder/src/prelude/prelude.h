/* What most files of the kernel include, first of all what kbuild has every file include. */
#include <linux/compiler-version.h>
#include <linux/kconfig.h>
#include <linux/compiler_types.h>

#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/mm.h>
#include <linux/fs.h>
#include <linux/device.h>
#include <linux/interrupt.h>
#include <linux/uaccess.h>
#include <linux/seq_file.h>
#include <linux/pagemap.h>
#include <linux/blkdev.h>
#include <linux/netdevice.h>
