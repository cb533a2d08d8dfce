// SPDX-License-Identifier: GPL-3.0-or-later
// A command and its answer. Events that come in between are queued.
#include <errno.h>

#include "dom.h"

// The error numbers of KVM's side of the protocol (linux/kvm_para.h has those that are not errno's own).
static int errno_of(int error)
{
	switch (-error) {
	case 1000:
		return ENOSYS;
	case EPERM:
	case ENOENT:
	case E2BIG:
	case EAGAIN:
	case ENOMEM:
	case EFAULT:
	case EBUSY:
	case EINVAL:
	case EOPNOTSUPP:
		return -error;
	default:
		return EPROTO;
	}
}

static int drop(struct dom *dom, size_t size)
{
	char rest[1024];

	while (size) {
		size_t part = size < sizeof(rest) ? size : sizeof(rest);

		if (dom_read(dom, rest, part, dom->patience))
			return -1;
		size -= part;
	}
	return 0;
}

// The header of the answer to command `id` number `seq`; its size without the header.
static int header_of(struct dom *dom, unsigned short id, unsigned int seq, size_t *size)
{
	struct kvmi_msg_hdr header;

	for (;;) {
		if (dom_read(dom, &header, sizeof(header), dom->patience))
			return -1;
		if (header.id == KVMI_EVENT) {
			if (event_take(dom, &header))
				return -1;
			continue;
		}
		if (header.id != id || header.seq != seq) {
			kvmi_lab_log(KVMI_LOG_LEVEL_ERROR, "answer %u (number %u) instead of %u (number %u)",
				     header.id, header.seq, id, seq);
			return dom_break(dom, EPROTO);
		}
		*size = header.size;
		return 0;
	}
}

static int answer(struct dom *dom, unsigned short id, unsigned int seq, void *to, size_t least, size_t most,
		  size_t *got)
{
	struct kvmi_error_code code;
	size_t size = 0, part;

	if (header_of(dom, id, seq, &size))
		return -1;
	if (size < sizeof(code))
		return dom_break(dom, EPROTO);
	if (dom_read(dom, &code, sizeof(code), dom->patience))
		return -1;
	size -= sizeof(code);
	if (code.err) {
		if (drop(dom, size))
			return -1;
		errno = errno_of(code.err);
		return -1;
	}
	if (size < least)
		return dom_break(dom, EPROTO);
	part = size < most ? size : most;
	if (part && dom_read(dom, to, part, dom->patience))
		return -1;
	if (got)
		*got = part;
	return drop(dom, size - part);
}

int ask(struct dom *dom, unsigned short id, const void *data, size_t size, void *to, size_t least, size_t most,
	size_t *got)
{
	struct kvmi_msg_hdr header = { .id = id, .size = size };
	struct iovec parts[2] = { { &header, sizeof(header) }, { (void *)data, size } };
	int failed;

	if (size > KVMI_MSG_SIZE) {
		errno = E2BIG;
		return -1;
	}
	pthread_mutex_lock(&dom->lock);
	header.seq = ++dom->seq;
	failed = dom_send(dom, parts, size ? 2 : 1);
	if (!failed)
		failed = answer(dom, id, header.seq, to, least, most, got);
	pthread_mutex_unlock(&dom->lock);
	return failed;
}
