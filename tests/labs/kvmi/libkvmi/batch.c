// SPDX-License-Identifier: GPL-3.0-or-later
// Many commands in one send: the answers are turned off before them and on again, with an answer, behind them.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dom.h"

struct response {
	__u8 enable;
	__u8 now;
	__u16 padding1;
	__u32 padding2;
};

static int add(struct batch *batch, unsigned short id, unsigned int seq, const void *data, size_t size)
{
	struct kvmi_msg_hdr header = { .id = id, .size = size, .seq = seq };
	size_t wanted = batch->used + sizeof(header) + size;

	if (size > KVMI_MSG_SIZE) {
		errno = E2BIG;
		return -1;
	}
	if (wanted > batch->space) {
		unsigned char *bytes = realloc(batch->bytes, 2 * wanted);

		if (!bytes)
			return -1;
		batch->bytes = bytes;
		batch->space = 2 * wanted;
	}
	memcpy(batch->bytes + batch->used, &header, sizeof(header));
	memcpy(batch->bytes + batch->used + sizeof(header), data, size);
	batch->used = wanted;
	return 0;
}

static unsigned int number(struct dom *dom)
{
	unsigned int seq;

	pthread_mutex_lock(&dom->lock);
	seq = ++dom->seq;
	pthread_mutex_unlock(&dom->lock);
	return seq;
}

void *kvmi_batch_alloc(void *dom)
{
	struct response off = { .enable = 0, .now = 1 };
	struct batch *batch = calloc(1, sizeof(*batch));

	if (!batch)
		return NULL;
	batch->dom = dom;
	if (add(batch, KVMI_CONTROL_CMD_RESPONSE, number(dom), &off, sizeof(off))) {
		kvmi_batch_free(batch);
		return NULL;
	}
	return batch;
}

int kvmi_batch_commit(void *b)
{
	struct response on = { .enable = 1, .now = 1 };
	struct batch *batch = b;
	struct iovec part = { batch->bytes, batch->used };
	int failed;

	// What is sent in between by others is answered as it should be only if nobody comes in between.
	pthread_mutex_lock(&batch->dom->lock);
	failed = dom_send(batch->dom, &part, 1);
	pthread_mutex_unlock(&batch->dom->lock);
	batch->used = 0;
	return failed ? -1 : ask(batch->dom, KVMI_CONTROL_CMD_RESPONSE, &on, sizeof(on), NULL, 0, 0, NULL);
}

void kvmi_batch_free(void *b)
{
	struct batch *batch = b;

	if (!batch)
		return;
	free(batch->bytes);
	free(batch);
}

static int add_pause(struct batch *batch, unsigned short vcpu, bool wait)
{
	struct {
		struct kvmi_vcpu_hdr vcpu;
		__u8 wait;
		__u8 padding[7];
	} request = { .vcpu = { .vcpu = vcpu }, .wait = wait };

	return add(batch, KVMI_PAUSE_VCPU, number(batch->dom), &request, sizeof(request));
}

int kvmi_queue_pause_vcpu(void *batch, unsigned short vcpu)
{
	return add_pause(batch, vcpu, false);
}

int kvmi_pause_all_vcpus(void *dom, unsigned int count)
{
	void *batch = kvmi_batch_alloc(dom);
	int failed = batch ? 0 : -1;

	for (unsigned int vcpu = 0; !failed && vcpu < count; vcpu++)
		failed = add_pause(batch, vcpu, true);
	if (!failed)
		failed = kvmi_batch_commit(batch);
	kvmi_batch_free(batch);
	return failed;
}

struct accesses {
	__u16 view;
	__u16 count;
	__u32 padding;
	struct kvmi_page_access_entry entries[500];
};

static size_t fill(struct accesses *to, const unsigned long long int *gpa, const unsigned char *access,
		   unsigned short count, unsigned short view)
{
	memset(to, 0, sizeof(*to));
	to->view = view;
	to->count = count;
	for (unsigned short i = 0; i < count; i++) {
		to->entries[i].gpa = gpa[i];
		to->entries[i].access = access[i];
	}
	return offsetof(struct accesses, entries) + count * sizeof(to->entries[0]);
}

int kvmi_set_page_access(void *dom, unsigned long long int *gpa, unsigned char *access, unsigned short count,
			 unsigned short view)
{
	struct accesses request;

	if (count > 500) {
		errno = E2BIG;
		return -1;
	}
	return ask(dom, KVMI_SET_PAGE_ACCESS, &request, fill(&request, gpa, access, count, view), NULL, 0, 0, NULL);
}

int kvmi_queue_page_access(void *batch, unsigned long long int *gpa, unsigned char *access,
			   unsigned short count, unsigned short view)
{
	struct accesses request;

	if (count > 500) {
		errno = E2BIG;
		return -1;
	}
	return add(batch, KVMI_SET_PAGE_ACCESS, number(((struct batch *)batch)->dom), &request,
		   fill(&request, gpa, access, count, view));
}
