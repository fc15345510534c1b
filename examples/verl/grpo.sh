#!/usr/bin/env bash
# Train a policy with GRPO on one node with eight GPUs and a DMoERM as the reward. See README.md. This script has not been run.
set -euo pipefail
: "${DMOERM_MODEL:?set DMOERM_MODEL to a checkpoint folder or to the URL of a reward server}"
here=$(cd "$(dirname "$0")" && pwd)

python3 -m verl.trainer.main_ppo \
   algorithm.adv_estimator=grpo \
   data.train_files="${TRAIN:-train.parquet}" \
   data.val_files="${VALIDATION:-validation.parquet}" \
   data.train_batch_size=256 \
   data.max_prompt_length=1024 \
   data.max_response_length=1024 \
   actor_rollout_ref.model.path="${POLICY:-Qwen/Qwen2.5-7B-Instruct}" \
   actor_rollout_ref.actor.optim.lr=1e-6 \
   actor_rollout_ref.actor.ppo_mini_batch_size=64 \
   actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 \
   actor_rollout_ref.actor.use_kl_loss=True \
   actor_rollout_ref.actor.kl_loss_coef="${KL:-0.001}" \
   actor_rollout_ref.rollout.name=vllm \
   actor_rollout_ref.rollout.n=8 \
   actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
   actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
   actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8 \
   actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8 \
   reward_model.reward_manager=naive \
   custom_reward_function.path="$here/reward.py" \
   custom_reward_function.name=compute_score \
   trainer.logger='["console"]' \
   trainer.n_gpus_per_node=8 \
   trainer.nnodes=1 \
   trainer.total_epochs=1 \
   trainer.default_local_dir="${OUTPUT:-runs/verl}"
