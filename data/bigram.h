#pragma once

#include "data/corpus.h"

namespace ringlet {

/// The loss of the simplest model that knows a language at all, in nats per token of `validation`:
/// each token (or end of document) from the one before it, by the counts of `train` with `alpha`
/// added to each; the best alpha of 1, 0.1, 0.01 and 0.001 counts. What a trained model has to
/// beat. Throws Error unless both have the same tokenizer and a vocabulary of at most 1024.
double bigram_loss(const Corpus& train, const Corpus& validation);

}  // namespace ringlet
