/* SPDX-License-Identifier: GPL-3.0-or-later */
/* What the parts of this library share: a connection, and a command with its answer. */
#ifndef VMTREE_LAB_KVMI_DOM_H
#define VMTREE_LAB_KVMI_DOM_H

#include <pthread.h>
#include <sys/uio.h>

#include "libkvmi.h"

/* How long a peer may be silent in the middle of something, in ms. VMTREE_KVMI_PATIENCE changes it. */
#define PATIENCE 15000
/* Events that wait to be taken; a peer that sends more is cut off. */
#define MOST_EVENTS 16384

struct dom {
	int fd;
	/* Broken: nothing more is sent or read. */
	bool gone;
	int patience;
	unsigned int seq;
	unsigned int version;
	struct kvmi_features features;
	struct kvmi_qemu2introspector hello;
	/* One command at a time. */
	pthread_mutex_t lock;
	pthread_mutex_t queue_lock;
	struct kvmi_dom_event *first;
	struct kvmi_dom_event *last;
	size_t queued;
};

/* Commands that are sent together: the answers of all but the last are turned off. */
struct batch {
	struct dom *dom;
	size_t used;
	size_t space;
	unsigned char *bytes;
};

void kvmi_lab_log(kvmi_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Ends the connection for good; returns -1 with errno set to `error`. */
int dom_break(struct dom *dom, int error);
int dom_read(struct dom *dom, void *to, size_t size, int ms);
int dom_wait(struct dom *dom, int ms);
int dom_send(struct dom *dom, struct iovec *parts, int count);

/* Reads what follows the header of an event and queues it. */
int event_take(struct dom *dom, const struct kvmi_msg_hdr *header);

/*
 * Sends a command and reads its answer: at most `most` bytes into `to`, `least` of them must come; what is more is dropped. `got`
 * (may be NULL) is how many came. Returns 0, or -1 with errno.
 */
int ask(struct dom *dom, unsigned short id, const void *data, size_t size, void *to, size_t least, size_t most,
	size_t *got);

#endif
