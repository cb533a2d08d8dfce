// SPDX-License-Identifier: GPL-3.0-or-later
// Events: read from the socket, queued, taken, answered.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dom.h"

// How much of its own an event of this kind has; -1 for one that is not known.
static int own_size(unsigned int event)
{
	switch (event) {
	case KVMI_EVENT_UNHOOK:
	case KVMI_EVENT_XSETBV:
	case KVMI_EVENT_HYPERCALL:
	case KVMI_EVENT_CREATE_VCPU:
	case KVMI_EVENT_PAUSE_VCPU:
		return 0;
	case KVMI_EVENT_CR:
		return sizeof(struct kvmi_event_cr);
	case KVMI_EVENT_MSR:
		return sizeof(struct kvmi_event_msr);
	case KVMI_EVENT_BREAKPOINT:
		return sizeof(struct kvmi_event_breakpoint);
	case KVMI_EVENT_PF:
		return sizeof(struct kvmi_event_pf);
	case KVMI_EVENT_TRAP:
		return sizeof(struct kvmi_event_trap);
	case KVMI_EVENT_DESCRIPTOR:
		return sizeof(struct kvmi_event_descriptor);
	case KVMI_EVENT_SINGLESTEP:
		return sizeof(struct kvmi_event_singlestep);
	case KVMI_EVENT_CPUID:
		return sizeof(struct kvmi_event_cpuid);
	default:
		return -1;
	}
}

// Takes the raw message apart. Another version may have a longer or shorter common part, whose size it tells.
static int parse(struct kvmi_dom_event *event, size_t size)
{
	struct kvmi_event common;
	size_t part;
	int own;

	if (size < offsetof(struct kvmi_event, arch))
		return -1;
	part = size < sizeof(common) ? size : sizeof(common);
	memset(&common, 0, sizeof(common));
	memcpy(&common, event->buf, part);
	if (common.size < offsetof(struct kvmi_event, arch) || common.size > size)
		return -1;
	if (common.size < part)
		memset((char *)&common + common.size, 0, part - common.size);
	own = own_size(common.event);
	if (own < 0 || size - common.size < (size_t)own)
		return -1;
	event->event.common = common;
	memcpy((char *)&event->event + sizeof(common), event->buf + common.size, own);
	return 0;
}

int event_take(struct dom *dom, const struct kvmi_msg_hdr *header)
{
	struct kvmi_dom_event *event;
	bool room;

	if (header->size > sizeof(event->buf))
		return dom_break(dom, EPROTO);
	event = calloc(1, sizeof(*event));
	if (!event)
		return dom_break(dom, ENOMEM);
	event->seq = header->seq;
	if (dom_read(dom, event->buf, header->size, dom->patience)) {
		free(event);
		return -1;
	}
	if (parse(event, header->size)) {
		free(event);
		return dom_break(dom, EPROTO);
	}
	pthread_mutex_lock(&dom->queue_lock);
	room = dom->queued < MOST_EVENTS;
	if (room) {
		if (dom->last)
			dom->last->next = event;
		else
			dom->first = event;
		dom->last = event;
		dom->queued++;
	}
	pthread_mutex_unlock(&dom->queue_lock);
	if (!room) {
		free(event);
		return dom_break(dom, EPROTO);
	}
	return 0;
}

size_t kvmi_get_pending_events(void *d)
{
	struct dom *dom = d;
	size_t queued;

	pthread_mutex_lock(&dom->queue_lock);
	queued = dom->queued;
	pthread_mutex_unlock(&dom->queue_lock);
	return queued;
}

int kvmi_wait_event(void *d, kvmi_timeout_t ms)
{
	struct dom *dom = d;
	struct kvmi_msg_hdr header;
	int failed;

	if (kvmi_get_pending_events(dom))
		return 0;
	if (dom_wait(dom, ms))
		return -1;
	pthread_mutex_lock(&dom->lock);
	// Another thread may have read it while it waited for an answer.
	failed = kvmi_get_pending_events(dom) ? 0 : dom_wait(dom, 0);
	if (!failed && !kvmi_get_pending_events(dom)) {
		failed = dom_read(dom, &header, sizeof(header), dom->patience);
		if (!failed)
			failed = header.id == KVMI_EVENT ? event_take(dom, &header) : dom_break(dom, EPROTO);
	}
	pthread_mutex_unlock(&dom->lock);
	return failed;
}

int kvmi_pop_event(void *d, struct kvmi_dom_event **event)
{
	struct dom *dom = d;

	pthread_mutex_lock(&dom->queue_lock);
	*event = dom->first;
	if (*event) {
		dom->first = (*event)->next;
		if (!dom->first)
			dom->last = NULL;
		dom->queued--;
		(*event)->next = NULL;
	}
	pthread_mutex_unlock(&dom->queue_lock);
	if (!*event) {
		errno = EAGAIN;
		return -1;
	}
	return 0;
}

int kvmi_reply_event(void *d, unsigned int seq, const void *data, size_t size)
{
	struct dom *dom = d;
	struct kvmi_msg_hdr header = { .id = KVMI_EVENT_REPLY, .size = size, .seq = seq };
	struct iovec parts[2] = { { &header, sizeof(header) }, { (void *)data, size } };
	int failed;

	if (size > KVMI_MSG_SIZE) {
		errno = E2BIG;
		return -1;
	}
	pthread_mutex_lock(&dom->lock);
	failed = dom_send(dom, parts, 2);
	pthread_mutex_unlock(&dom->lock);
	return failed;
}
