#!/usr/bin/env bash
# Train an 8B policy with PPO on one node with eight GPUs and a DMoERM as the reward. See README.md. This script has not been run.
set -euo pipefail
: "${DMOERM_MODEL:?set DMOERM_MODEL to a checkpoint folder or to the URL of a reward server}"
here=$(cd "$(dirname "$0")" && pwd)

python3 -m openrlhf.cli.train_ppo_ray \
   --actor.model_name_or_path "${POLICY:-OpenRLHF/Llama-3-8b-sft-mixture}" \
   --reward.remote_url "$here/reward_func.py" \
   --data.prompt_dataset "${PROMPTS:-OpenRLHF/prompt-collection-v0.1}" \
   --data.input_key "${INPUT_KEY:-context_messages}" \
   --data.apply_chat_template \
   --data.max_len 2048 \
   --data.max_samples 100000 \
   --rollout.batch_size 1024 \
   --rollout.n_samples_per_prompt 1 \
   --rollout.max_new_tokens 1024 \
   --train.batch_size 128 \
   --train.micro_batch_size 8 \
   --train.max_epochs 1 \
   --train.colocate_all \
   --algo.advantage.estimator gae \
   --algo.kl.init_coef "${KL:-0.01}" \
   --reward.normalize_enable \
   --actor.adam.lr 5e-7 \
   --critic.adam.lr 9e-6 \
   --actor.num_nodes 1 --actor.num_gpus_per_node 8 \
   --critic.num_nodes 1 --critic.num_gpus_per_node 8 \
   --ref.num_nodes 1 --ref.num_gpus_per_node 8 \
   --vllm.num_engines 4 --vllm.tensor_parallel_size 2 --vllm.gpu_memory_utilization 0.5 --vllm.enable_sleep \
   --ds.enable_sleep \
   --ds.zero_stage 3 --ds.param_dtype bf16 --ds.packing_samples --ds.attn_implementation flash_attention_2 \
   --actor.gradient_checkpointing_enable --critic.gradient_checkpointing_enable \
   --ckpt.output_dir "${OUTPUT:-runs/openrlhf}" --ckpt.path "${OUTPUT:-runs/openrlhf}/checkpoints" --ckpt.save_steps 50
